package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// prefix of all annotations that control a simulated pod; e2e/README.md lists them.
const prefix = "e2e.job-handler.io/"

// annotation reads an annotation for a container: `<name>.<container>` takes precedence over `<name>`.
func annotation(pod *corev1.Pod, name, container string) string {
	if value, ok := pod.Annotations[prefix+name+"."+container]; ok {
		return value
	}
	return pod.Annotations[prefix+name]
}

// content is the log of one run of a container: what it writes at its start and then, if the annotations
// say so, one numbered line per tick until it ends. It depends on the pod alone, so that every reader gets
// the same at any time.
type content struct {
	pod       *corev1.Pod
	container string
	attempt   int32 // from 0
	started   time.Time
	until     time.Time // if known beforehand
	end       time.Time // if it ended
	ended     bool
	signalled bool // ended by SIGTERM
	interval  time.Duration
}

func newContent(pod *corev1.Pod, container string, previous bool) *content {
	c := &content{pod: pod, container: container, interval: duration(annotation(pod, "log-every", container))}
	status := statusOf(pod, container)
	if status == nil {
		return c
	}
	c.attempt = status.RestartCount
	state := status.State
	// A container that only waits has no current run: its log is that of the last run.
	if previous || (state.Running == nil && state.Terminated == nil && status.LastTerminationState.Terminated != nil) {
		c.attempt--
		state = status.LastTerminationState
	}
	if state.Running != nil {
		c.started = state.Running.StartedAt.Time
	}
	if state.Terminated != nil {
		c.ended = true
		c.started, c.end = state.Terminated.StartedAt.Time, state.Terminated.FinishedAt.Time
		c.signalled = state.Terminated.ExitCode == 143
	}
	if c.attempt == status.RestartCount && isMain(pod, container) {
		c.sharpen()
	}
	return c
}

// sharpen reads the exact times from the condition that KWOK's stages write; the times in the status are
// rounded to seconds.
func (c *content) sharpen() {
	var clock struct{ Started, Until, Ended time.Time }
	for _, condition := range c.pod.Status.Conditions {
		if condition.Type != prefix+"clock" || json.Unmarshal([]byte(condition.Message), &clock) != nil {
			continue
		}
		c.started, c.until = clock.Started, clock.Until
		switch {
		case c.ended && !c.signalled && !clock.Until.IsZero():
			c.end = clock.Until
		case c.ended && !clock.Ended.IsZero():
			c.end = clock.Ended
		}
	}
}

func (c *content) endNow() {
	if !c.ended {
		c.ended, c.signalled, c.end = true, true, time.Now()
	}
}

// write writes the output of the start, and the lines of this number of ticks.
func (c *content) write(to sink, ticks int64) error {
	if err := c.writeStart(to); err != nil {
		return err
	}
	return c.writeTicks(to, 0, ticks)
}

func (c *content) writeStart(to sink) error {
	get := func(name string) string { return annotation(c.pod, name, c.container) }
	at := c.started
	if c.attempt > 0 || get("restarts") != "" {
		if err := to.part(fmt.Appendf(nil, "attempt %d\n", c.attempt+1), at); err != nil {
			return err
		}
	}
	silent := true
	if text := get("log"); text != "" {
		silent = false
		for _, line := range bytes.SplitAfter([]byte(text), []byte{'\n'}) {
			if len(line) == 0 {
				continue
			}
			if err := to.part(line, at); err != nil {
				return err
			}
		}
	}
	if lines, err := strconv.ParseInt(get("log-lines"), 10, 64); err == nil {
		silent = false
		for number := range lines {
			if err := to.part(fmt.Appendf(nil, "line %d of %d\n", number+1, lines), at); err != nil {
				return err
			}
		}
	}
	for _, kind := range []struct {
		name string
		fill func(sink, int64, time.Time) error
	}{{"log-bytes", writeText}, {"log-one-line", writeOneLine}, {"log-binary", writeBinary}} {
		if size, err := resource.ParseQuantity(get(kind.name)); err == nil {
			silent = false
			if err := kind.fill(to, size.Value(), at); err != nil {
				return err
			}
		}
	}
	if silent && c.interval == 0 {
		return to.part(fmt.Appendf(nil, "hello from container %s of pod %s\n", c.container, c.pod.Name), at)
	}
	return nil
}

// ticksUntil is the number of ticks written by a point in time, plus one for the last line after the end.
func (c *content) ticksUntil(now time.Time) int64 {
	if c.interval == 0 || c.started.IsZero() {
		return 0
	}
	if c.ended {
		return max(0, int64(c.end.Sub(c.started)/c.interval)) + 1
	}
	// The watch may not have seen an end of a moment ago, and a line after the end would be wrong.
	now = now.Add(-writeLag)
	if !c.until.IsZero() && now.After(c.until) {
		now = c.until
	}
	return max(0, int64(now.Sub(c.started)/c.interval))
}

// writeLag is the delay of a running container's lines.
const writeLag = 100 * time.Millisecond

func (c *content) writeTicks(to sink, from, until int64) error {
	if c.ended && from >= until && from > 0 {
		from, until = until-1, until // the last line is always written
	}
	for tick := from; tick < until; tick++ {
		line, at := fmt.Sprintf("tick %d\n", tick+1), c.started.Add(time.Duration(tick+1)*c.interval)
		if c.ended && tick == until-1 {
			at = c.end
			if line = fmt.Sprintf("done after tick %d\n", tick); c.signalled {
				line = fmt.Sprintf("SIGTERM after tick %d\n", tick)
			}
		}
		if err := to.part([]byte(line), at); err != nil {
			return err
		}
	}
	return nil
}

// nextTick fires when the next line is due, and never if there are no ticks.
func (c *content) nextTick() <-chan time.Time {
	if c.interval == 0 {
		return nil
	}
	next := c.started.Add(time.Duration(c.ticksUntil(time.Now())+1)*c.interval + writeLag)
	return time.After(time.Until(next))
}

// writeText writes exactly size bytes of numbered lines of 80 characters.
func writeText(to sink, size int64, at time.Time) error {
	for number := int64(1); size > 0; number++ {
		line := fmt.Appendf(nil, "%09d ", number)
		for len(line) < 79 {
			line = append(line, "abcdefghijklmnopqrstuvwxyz"[(int64(len(line))+number)%26])
		}
		line = append(line, '\n')
		line = line[:min(size, int64(len(line)))]
		size -= int64(len(line))
		if err := to.part(line, at); err != nil {
			return err
		}
	}
	return nil
}

// writeOneLine writes size bytes without a line end.
func writeOneLine(to sink, size int64, at time.Time) error {
	piece := bytes.Repeat([]byte("0123456789abcdef"), 2048)
	for ; size > 0; size -= int64(len(piece)) {
		if err := to.part(piece[:min(size, int64(len(piece)))], at); err != nil {
			return err
		}
	}
	return nil
}

// writeBinary writes size bytes with all byte values, which are not UTF-8.
func writeBinary(to sink, size int64, at time.Time) error {
	cycle := make([]byte, 256)
	for value := range cycle {
		cycle[value] = byte(value)
	}
	for ; size > 0; size -= 256 {
		for _, piece := range bytes.SplitAfter(cycle[:min(size, 256)], []byte{'\n'}) {
			if len(piece) == 0 {
				continue
			}
			if err := to.part(piece, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func isMain(pod *corev1.Pod, container string) bool {
	for _, candidate := range pod.Spec.Containers {
		if candidate.Name == container {
			return true
		}
	}
	return false
}

// duration parses a Go duration or a bare number of seconds; 0 if there is none.
func duration(text string) time.Duration {
	if value, err := time.ParseDuration(text); err == nil {
		return value
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		return time.Duration(seconds * float64(time.Second))
	}
	return 0
}
