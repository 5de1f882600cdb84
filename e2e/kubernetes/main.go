// A Kubernetes control plane, and the nodes' side of it, in one binary.
//
// Each component is its project's own command, started as a process of its own: its name is the first
// argument, or the name that the binary is called by (a symlink named `kubectl` is kubectl). No component
// is changed. The build tag `no_NAME` (with `_` for `-`) leaves a component out of the binary.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
)

// components holds what this binary can be; each component's file adds its own.
var components = map[string]func(){
	"node-logs": func() { run(nodeLogsCommand()) },
}

func main() {
	if component, ok := components[filepath.Base(os.Args[0])]; ok {
		component()
		return
	}
	if len(os.Args) > 1 {
		if component, ok := components[os.Args[1]]; ok {
			// Some commands parse os.Args themselves.
			os.Args = os.Args[1:]
			component()
			return
		}
	}
	names := slices.Sorted(maps.Keys(components))
	fmt.Fprintf(os.Stderr, "usage: %s COMPONENT [ARGUMENTS]\nCOMPONENT is one of: %s\n", os.Args[0], strings.Join(names, ", "))
	os.Exit(2)
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
