package main

import "github.com/spf13/cobra"

func nodeLogsCommand() *cobra.Command {
	c := &cobra.Command{Use: "node-logs", RunE: func(*cobra.Command, []string) error { select {} }}
	c.Flags().String("kubeconfig", "", "")
	c.Flags().String("listen", "", "")
	return c
}
