// SPDX-License-Identifier: Apache-2.0

// Command gen writes what is made from the metrics: their documentation, a Grafana dashboard and alert rules.
//
// Run it at the top of the checkout: go run ./metrics/gen
package main

import (
	"fmt"
	"os"
)

// files are what is written, by path.
func files() (map[string][]byte, error) {
	dashboard, err := dashboard()
	if err != nil {
		return nil, err
	}
	rules, err := rules()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"plugin-config/dashboards/mustang.json":      dashboard,
		"plugin-config/dashboards/mustang.rules.yml": rules,
		"docs/metrics.md":                            page(),
	}, nil
}

func main() {
	all, err := files()
	for path, content := range all {
		if err == nil {
			err = os.WriteFile(path, content, 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}
