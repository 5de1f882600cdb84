//go:build !no_kubelet

package main

import (
	"context"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kubelet/app"
)

func init() {
	components["kubelet"] = func() { run(app.NewKubeletCommand(context.Background())) }
}
