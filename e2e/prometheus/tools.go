//go:build tools

// Package prometheus pins the programs that the tests of manifests/monitoring build.
package prometheus

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
