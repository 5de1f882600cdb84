//go:build !no_kube_proxy

package main

import (
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

func init() {
	components["kube-proxy"] = func() { run(app.NewProxyCommand()) }
}
