//go:build tools

// Package objectstore pins the S3-compatible server that whole logs are tested against.
package objectstore

import _ "github.com/versity/versitygw/cmd/versitygw"
