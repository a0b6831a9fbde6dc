// SPDX-License-Identifier: Apache-2.0

// Command promql says whether the queries of a dashboard (JSON) and of rules (YAML) are PromQL. It is a module of its own, so that the
// product does not depend on Prometheus.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

// Grafana puts a duration there.
var variables = strings.NewReplacer("$__rate_interval", "5m")

// queries are the values of every key expr.
func queries(v any, found *[]string) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if text, ok := value.(string); ok && key == "expr" {
				*found = append(*found, text)
			} else {
				queries(value, found)
			}
		}
	case []any:
		for _, value := range v {
			queries(value, found)
		}
	}
}

func check(path string) (n int, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var content any
	if err := yaml.Unmarshal(text, &content); err != nil { // JSON is YAML
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	var found []string
	queries(content, &found)
	if len(found) == 0 {
		return 0, fmt.Errorf("%s has no query", path)
	}
	for _, q := range found {
		if _, err := parser.NewParser(parser.Options{}).ParseExpr(variables.Replace(q)); err != nil {
			return 0, fmt.Errorf("%s: %s: %w", path, q, err)
		}
	}
	return len(found), nil
}

func main() {
	for _, path := range os.Args[1:] {
		n, err := check(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, "promql:", err)
			os.Exit(1)
		}
		fmt.Printf("%s: %d queries\n", path, n)
	}
}
