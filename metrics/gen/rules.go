// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"sigs.k8s.io/yaml"
)

// alert is one rule.
type alert struct {
	name     string
	expr     string
	lasts    string // before it fires
	severity string // critical: containers or services do not work; warning: they will not for long
	summary  string
	anchor   string // of docs/troubleshooting.md
}

// alerts, the worst first.
var alerts = []alert{
	{"MustangDown", `up{job="mustang"} == 0`, "2m", "critical",
		"The mustang daemon on {{ $labels.instance }} does not answer: what runs goes on, and containers do not start.", "the-daemon-is-down"},
	{"MustangServiceWritesFail", `mustang_service_write_failing == 1`, "1m", "critical",
		"Services on {{ $labels.instance }} cannot be written to the maps: new and ended replicas are not followed.", "services-cannot-be-written"},
	{"MustangNotReady", `mustang_ready == 0`, "2m", "warning",
		"mustang on {{ $labels.instance }} is not ready: it does not know all containers, or services are not in the maps as they should be.", "mustang-is-not-ready"},
	{"MustangEngineLost", `mustang_engine_up == 0`, "2m", "warning",
		"mustang on {{ $labels.instance }} does not hear of the engine's containers.", "the-engine-is-lost"},
	{"MustangCallsFail", `sum by (instance, method) (rate(mustang_plugin_call_duration_seconds_count{result="error"}[5m])) > 0.05`, "10m", "warning",
		"Calls of {{ $labels.method }} fail on {{ $labels.instance }}: containers do not start, or are not removed.", "calls-fail"},
	{"MustangCallsSlow", `histogram_quantile(0.99, sum by (instance, method, le) (rate(mustang_plugin_call_duration_seconds_bucket[5m]))) > 2`, "10m", "warning",
		"One of a hundred calls of {{ $labels.method }} takes more than 2 s on {{ $labels.instance }}; after 5 s they fail.", "calls-are-slow"},
	{"MustangEventsLate", `histogram_quantile(0.9, sum by (instance, le) (rate(mustang_engine_event_lag_seconds_bucket[5m]))) > 1`, "10m", "warning",
		"Events of the engine on {{ $labels.instance }} are applied more than 1 s late: services lag behind the containers.", "events-are-late"},
	{"MustangServiceWithoutBackends", `mustang_service_active_backends == 0`, "5m", "warning",
		"The service {{ $labels.service }} of network {{ $labels.network }} on {{ $labels.instance }} has no running backend and refuses connections.", "a-service-has-no-backend"},
	{"MustangMapFull", `mustang_map_entries{map!~"ct|affinity|frags"} / mustang_map_max_entries > 0.8`, "10m", "warning",
		"The map {{ $labels.map }} on {{ $labels.instance }} is more than 80 % full.", "a-map-is-full"},
	{"MustangPoolFull", `mustang_pool_leases / mustang_pool_addresses > 0.9`, "10m", "warning",
		"More than 90 % of the addresses of {{ $labels.pool }} on {{ $labels.instance }} are leased.", "a-subnet-is-full"},
	{"MustangFlowsRefused", `sum by (instance, reason) (rate(mustang_drops_total{reason=~"ct-full|ct-collision|nat-failed|snat-full|snat-ports|snat-quota"}[5m])) > 0.1`, "10m", "warning",
		"Connections on {{ $labels.instance }} are refused for want of room ({{ $labels.reason }}).", "flows-are-refused"},
	{"MustangNamesFail", `sum by (instance, result) (rate(mustang_dns_queries_total{result=~"failed|dropped"}[5m])) > 1`, "10m", "warning",
		"Lookups of names on {{ $labels.instance }} are not answered ({{ $labels.result }}).", "names-are-not-answered"},
	{"MustangReloadFailed", `mustang_config_last_reload_successful == 0`, "1m", "warning",
		"The configuration on {{ $labels.instance }} is wrong, and the one before goes on.", "the-configuration-is-not-read"},
	{"MustangMetricsIncomplete", `mustang_source_up == 0 or mustang_service_backends_left_out > 0`, "10m", "warning",
		"Metrics of {{ $labels.instance }} are missing.", "metrics-are-missing"},
}

const runbooks = "https://github.com/mustang-net/mustang/blob/main/docs/troubleshooting.md#"

// rules is the file that Prometheus loads.
func rules() ([]byte, error) {
	type rule struct {
		Alert       string            `json:"alert"`
		Expr        string            `json:"expr"`
		For         string            `json:"for"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	}
	var list []rule
	for _, a := range alerts {
		list = append(list, rule{
			Alert: a.name, Expr: a.expr, For: a.lasts, Labels: map[string]string{"severity": a.severity},
			Annotations: map[string]string{
				"summary":     a.summary,
				"description": fmt.Sprintf("What to look at, and what to do: docs/troubleshooting.md, %q.", a.anchor),
				"runbook_url": runbooks + a.anchor,
			},
		})
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "mustang", "rules": list}}})
	return append([]byte("# Made by go run ./metrics/gen; DO NOT EDIT. Scrape mustang as the job \"mustang\".\n"), text...), err
}
