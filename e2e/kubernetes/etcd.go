package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// etcdCommand is a single-member etcd on loopback. Its data need not survive the machine, so it
// does not fsync; what was written before a SIGKILL of the process is still in the page cache.
func etcdCommand() *cobra.Command {
	var dataDir, clientURL, peerURL string
	command := &cobra.Command{
		Use:          "etcd",
		SilenceUsage: true,
		Args:         cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			client, err := url.Parse(clientURL)
			if err != nil {
				return fmt.Errorf("--listen-client-url: %w", err)
			}
			peer, err := url.Parse(peerURL)
			if err != nil {
				return fmt.Errorf("--listen-peer-url: %w", err)
			}
			config := embed.NewConfig()
			config.Name = "e2e"
			config.Dir = dataDir
			config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
			config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
			config.InitialCluster = config.InitialClusterFromName(config.Name)
			config.UnsafeNoFsync = true
			config.LogLevel = "warn"
			config.QuotaBackendBytes = 8 << 30
			config.AutoCompactionMode = "periodic"
			config.AutoCompactionRetention = "5m"
			server, err := embed.StartEtcd(config)
			if err != nil {
				return err
			}
			defer server.Close()
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
			select {
			case <-stop:
				return nil
			case err := <-server.Err():
				return err
			case <-server.Server.StopNotify():
				return fmt.Errorf("the server stopped by itself")
			}
		},
	}
	flags := command.Flags()
	flags.StringVar(&dataDir, "data-dir", "", "where the data is kept")
	flags.StringVar(&clientURL, "listen-client-url", "http://127.0.0.1:2379", "where clients connect")
	flags.StringVar(&peerURL, "listen-peer-url", "http://127.0.0.1:2380", "where peers would connect")
	return command
}
