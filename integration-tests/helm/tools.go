//go:build tools

// Package helm names the program that renders and installs the chart in tests, so that go.mod and
// go.sum pin everything that it needs.
package helm

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
