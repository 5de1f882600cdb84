package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// containerLogs answers as the kubelet's handler of the same path does, including its errors
// (pkg/kubelet/server/server.go, getContainerLogs; pkg/kubelet/kubelet_pods.go, GetKubeletContainerLogs).
func (v *nodeView) containerLogs(response http.ResponseWriter, request *http.Request) {
	ctx := request.Context()
	namespace, name, container := request.PathValue("namespace"), request.PathValue("pod"), request.PathValue("container")
	options, err := parseOptions(request)
	if err != nil {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	pod := v.pod(ctx, namespace, name, container)
	if pod == nil {
		http.Error(response, fmt.Sprintf("pod %q does not exist", name), http.StatusNotFound)
		return
	}
	if !hasContainer(pod, container) {
		http.Error(response, fmt.Sprintf("container %q not found in pod %q", container, name), http.StatusNotFound)
		return
	}
	if v.hangs(pod, container) {
		<-ctx.Done()
		return
	}
	if code, err := strconv.Atoi(annotation(pod, "log-error", container)); err == nil {
		http.Error(response, "the test wants this log call to fail", code)
		return
	}
	id, err := containerID(pod, container, options.previous)
	if err != nil {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	// The kubelet has already sent the status line: if the runtime no longer knows the container, the error
	// is the body of a 200.
	response.Header().Set("Content-Type", "text/plain")
	response.WriteHeader(http.StatusOK)
	if isRemoved(pod, container) {
		fmt.Fprintf(response, "unable to retrieve container logs for %s", id)
		return
	}
	output := &limited{writer: response, left: options.limitBytes, options: options}
	if options.stream != "Stderr" {
		err = v.copyLog(request, output, pod, container, id)
	}
	if err == nil || errors.Is(err, errLimit) {
		output.flush()
	}
}

// copyLog writes the log so far and, if it is followed, each new line until this run of the container ends.
func (v *nodeView) copyLog(request *http.Request, output *limited, pod *corev1.Pod, container, id string) error {
	options := output.options
	source := newContent(pod, container, options.previous)
	written := source.ticksUntil(time.Now())
	if options.tailLines >= 0 {
		counted := &lineCounter{}
		if err := source.write(counted, written); err != nil {
			return err
		}
		output.skipLines = max(0, counted.lines-options.tailLines)
	}
	if err := source.write(output, written); err != nil {
		return err
	}
	for options.follow && !source.ended {
		output.flush()
		change := v.nextChange()
		current, gone := v.followed(request.Context(), pod)
		if gone {
			source.endNow()
		}
		if current != nil {
			now, err := containerID(current, container, false)
			switch {
			case err != nil: // a view from before the container started
			case now != id:
				return nil // started again: the run that was followed is over
			default:
				source = newContent(current, container, false)
			}
		}
		ticks := source.ticksUntil(time.Now())
		if err := source.writeTicks(output, written, ticks); err != nil {
			return err
		}
		written = ticks
		if source.ended {
			break
		}
		select {
		case <-change:
		case <-source.nextTick():
		case <-request.Context().Done():
			return request.Context().Err()
		}
	}
	return nil
}

// followed reads a pod again. It returns gone if the pod no longer exists, and neither a pod nor gone if the
// watch has not seen the pod yet.
func (v *nodeView) followed(ctx context.Context, pod *corev1.Pod) (current *corev1.Pod, gone bool) {
	current, err := v.pods.Pods(pod.Namespace).Get(pod.Name)
	if err == nil && current.UID == pod.UID {
		return current, false
	}
	current, err = v.client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || (err == nil && current.UID != pod.UID) {
		return nil, true
	}
	return current, false
}

// hangs returns whether an annotation of the pod or of its node says that this call is never answered.
func (v *nodeView) hangs(pod *corev1.Pod, container string) bool {
	if annotation(pod, "log-hang", container) == "true" {
		return true
	}
	node, err := v.nodes.Get(pod.Spec.NodeName)
	return err == nil && node.Annotations[prefix+"log-hang"] == "true"
}

// isRemoved returns whether the kubelet has removed the containers although the pod object still exists: of
// evicted pods, and of deleted pods after they ended (pkg/kubelet/pod_workers.go,
// ShouldPodContentBeRemoved). Their log files go with them.
func isRemoved(pod *corev1.Pod, container string) bool {
	evicted := pod.Status.Phase == corev1.PodFailed && pod.Status.Reason == "Evicted"
	deleted := pod.DeletionTimestamp != nil && isEnded(pod)
	return evicted || deleted || annotation(pod, "log-gone", container) == "true"
}

// containerID returns the run of the container whose log is requested (validateContainerLogStatus).
func containerID(pod *corev1.Pod, container string, previous bool) (string, error) {
	status := statusOf(pod, container)
	if status == nil {
		return "", fmt.Errorf("container %q in pod %q is not available", container, pod.Name)
	}
	last := status.LastTerminationState.Terminated
	state := status.State
	switch {
	case previous:
		if last == nil || last.ContainerID == "" {
			return "", fmt.Errorf("previous terminated container %q in pod %q not found", container, pod.Name)
		}
		return last.ContainerID, nil
	case state.Running != nil:
		return status.ContainerID, nil
	case state.Terminated != nil && state.Terminated.ContainerID != "":
		return state.Terminated.ContainerID, nil
	case last != nil && last.ContainerID != "":
		return last.ContainerID, nil
	case state.Terminated != nil:
		return "", fmt.Errorf("container %q in pod %q is terminated", container, pod.Name)
	case state.Waiting == nil:
		return "", fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", container, pod.Name)
	}
	reason := state.Waiting.Reason
	switch reason {
	case "ErrImagePull":
		reason = "image can't be pulled"
	case "ImagePullBackOff":
		reason = "trying and failing to pull image"
	}
	return "", fmt.Errorf("container %q in pod %q is waiting to start: %s", container, pod.Name, reason)
}

func hasContainer(pod *corev1.Pod, name string) bool {
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for _, container := range containers {
			if container.Name == name {
				return true
			}
		}
	}
	for _, container := range pod.Spec.EphemeralContainers {
		if container.Name == name {
			return true
		}
	}
	return false
}

func statusOf(pod *corev1.Pod, container string) *corev1.ContainerStatus {
	for _, statuses := range [][]corev1.ContainerStatus{
		pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses,
	} {
		for index := range statuses {
			if statuses[index].Name == container {
				return &statuses[index]
			}
		}
	}
	return nil
}

func stateOf(pod *corev1.Pod, container string) corev1.ContainerState {
	if status := statusOf(pod, container); status != nil {
		return status.State
	}
	return corev1.ContainerState{}
}
