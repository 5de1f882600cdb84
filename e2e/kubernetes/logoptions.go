package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// logOptions are the kubelet's query options (PodLogOptions).
type logOptions struct {
	follow, previous, timestamps bool
	since                        time.Time
	tailLines                    int64 // -1: all
	limitBytes                   int64
	stream                       string
}

func parseOptions(request *http.Request) (logOptions, error) {
	query := request.URL.Query()
	options := logOptions{tailLines: -1, limitBytes: math.MaxInt64, stream: query.Get("stream")}
	var err error
	flag := func(name string, value *bool) {
		if text := query.Get(name); text != "" && err == nil {
			*value, err = strconv.ParseBool(text)
		}
	}
	number := func(name string, value *int64) {
		if text := query.Get(name); text != "" && err == nil {
			*value, err = strconv.ParseInt(text, 10, 64)
		}
	}
	flag("follow", &options.follow)
	flag("previous", &options.previous)
	flag("timestamps", &options.timestamps)
	number("tailLines", &options.tailLines)
	number("limitBytes", &options.limitBytes)
	var sinceSeconds int64
	number("sinceSeconds", &sinceSeconds)
	if sinceSeconds > 0 {
		options.since = time.Now().Add(-time.Duration(sinceSeconds) * time.Second)
	}
	if text := query.Get("sinceTime"); text != "" && err == nil {
		options.since, err = time.Parse(time.RFC3339Nano, text)
	}
	if err != nil {
		return options, fmt.Errorf("unable to decode query: %w", err)
	}
	return options, nil
}

// errLimit ends a log after limitBytes.
var errLimit = errors.New("limitBytes reached")

// sink receives a log in parts; a part is a line, or a piece of a very long one.
type sink interface {
	part(content []byte, at time.Time) error
}

// limited applies the options to a log on its way to the client.
type limited struct {
	writer    http.ResponseWriter
	options   logOptions
	left      int64
	skipLines int64
	midLine   bool
}

func (l *limited) part(content []byte, at time.Time) error {
	ends := bytes.HasSuffix(content, []byte{'\n'})
	starts := !l.midLine
	l.midLine = !ends
	if l.skipLines > 0 {
		if ends {
			l.skipLines--
		}
		return nil
	}
	if at.Before(l.options.since) {
		return nil
	}
	if l.options.timestamps && starts {
		stamp := at.UTC().Format("2006-01-02T15:04:05.000000000Z07:00 ")
		if err := l.write([]byte(stamp)); err != nil {
			return err
		}
	}
	return l.write(content)
}

func (l *limited) write(content []byte) error {
	cut := content[:min(int64(len(content)), l.left)]
	if _, err := l.writer.Write(cut); err != nil {
		return err
	}
	l.left -= int64(len(cut))
	if l.left == 0 {
		return errLimit
	}
	return nil
}

func (l *limited) flush() {
	if flusher, ok := l.writer.(http.Flusher); ok {
		flusher.Flush()
	}
}

// lineCounter counts the lines of a log for tailLines, an unfinished last line included.
type lineCounter struct {
	lines   int64
	midLine bool
}

func (c *lineCounter) part(content []byte, _ time.Time) error {
	if !c.midLine {
		c.lines++
	}
	c.midLine = !bytes.HasSuffix(content, []byte{'\n'})
	return nil
}
