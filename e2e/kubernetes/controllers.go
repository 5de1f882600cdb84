//go:build !no_kube_controller_manager

package main

import (
	_ "time/tzdata" // CronJobs may name a time zone, and the machine may have no zoneinfo

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func init() {
	components["kube-controller-manager"] = func() { run(app.NewControllerManagerCommand()) }
}
