// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
)

// panel is one picture.
type panel struct {
	title, about string
	unit         string // Grafana's name of it
	now          bool   // a number, and not a curve
	lines        []line
}

// line is a query, with how its series are called.
type line struct{ expr, legend string }

// row is panels below one heading.
type row struct {
	title  string
	panels []panel
}

// on are the hosts that are looked at.
const on = `{instance=~"$instance"}`

func percentiles(metric, by string) []line {
	quantile := func(q string) string {
		return "histogram_quantile(" + q + ", sum by (le, " + by + ") (rate(" + metric + "_bucket" + on + "[$__rate_interval])))"
	}
	return []line{{quantile("0.5"), "median {{" + by + "}}"}, {quantile("0.99"), "99 % {{" + by + "}}"}}
}

func perSecond(metric, by string) []line {
	return []line{{"sum by (" + by + ") (rate(" + metric + on + "[$__rate_interval]))", "{{" + by + "}}"}}
}

// rows is the dashboard.
var rows = []row{
	{"Overview", []panel{
		{"Ready", "0 where the daemon does not know all containers, or services are not in the maps as they should be", "none", true, []line{{"mustang_ready" + on, "{{instance}}"}}},
		{"Engine", "0 where the engine does not answer", "none", true, []line{{"mustang_engine_up" + on, "{{instance}}"}}},
		{"Endpoints", "Containers' attachments to networks", "none", true, []line{{"sum(mustang_network_endpoints" + on + ")", "endpoints"}}},
		{"Services without a backend", "They refuse connections", "none", true, []line{{"count(mustang_service_active_backends" + on + " == 0) or vector(0)", "services"}}},
		{"Versions", "What runs where", "none", true, []line{{"count by (version) (mustang_build_info" + on + ")", "{{version}}"}}},
		{"Published ports", "", "none", true, []line{{"sum(mustang_published_ports" + on + ")", "ports"}}},
	}},
	{"Services", []panel{
		{"New connections", "By service; what a published port gets is there under the port", "cps", false, perSecond("mustang_service_connections_total", "service")},
		{"New connections by backend", "", "cps", false, perSecond("mustang_service_connections_total", "backend")},
		{"Bytes to backends", "", "Bps", false, perSecond("mustang_service_received_bytes_total", "service")},
		{"Bytes from backends", "", "Bps", false, perSecond("mustang_service_sent_bytes_total", "service")},
		{"Active backends", "That get new connections now", "none", false, []line{{"sum by (network, service) (mustang_service_active_backends" + on + ")", "{{network}} {{service}}"}}},
		{"Writes to the maps", "Each is a change of containers, networks or services", "ops", false, perSecond("mustang_service_writes_total", "result")},
	}},
	{"Refused", []panel{
		{"By reason", "Packets, and connections of sockets", "pps", false, perSecond("mustang_drops_total", "reason")},
		{"By network", "", "pps", false, perSecond("mustang_drops_total", "network")},
		{"Bytes", "", "Bps", false, perSecond("mustang_dropped_bytes_total", "reason")},
		{"Events that the monitor missed", "Only while somebody looks", "ops", false, []line{{"rate(mustang_monitor_events_lost_total" + on + "[$__rate_interval])", "{{instance}}"}}},
	}},
	{"Engine and runtimes", []panel{
		{"Time of the engine's calls", "After 5 s they are answered with an error", "s", false, percentiles("mustang_plugin_call_duration_seconds", "method")},
		{"Calls that failed", "", "ops", false, []line{{`sum by (method) (rate(mustang_plugin_call_duration_seconds_count{instance=~"$instance",result="error"}[$__rate_interval]))`, "{{method}}"}}},
		{"Lag of events", "From what happened to a container until services follow", "s", false, percentiles("mustang_engine_event_lag_seconds", "instance")},
		{"Times that events broke off", "", "none", false, []line{{"increase(mustang_engine_streams_lost_total" + on + "[$__rate_interval])", "{{instance}}"}}},
		{"Time of CNI calls", "", "s", false, percentiles("mustang_cni_call_duration_seconds", "command")},
		{"Time of the command line's requests", "", "s", false, percentiles("mustang_api_request_duration_seconds", "request")},
	}},
	{"Names", []panel{
		{"Queries", "By what became of them", "reqps", false, perSecond("mustang_dns_queries_total", "result")},
	}},
	{"Room", []panel{
		{"Maps", "How full they are; of ct, affinity and frags the oldest entries go", "percentunit", false, []line{{"mustang_map_entries" + on + " / mustang_map_max_entries" + on, "{{map}}"}}},
		{"Entries of conntrack and masquerading", "Two a flow", "none", false, []line{{`mustang_map_entries{instance=~"$instance",map=~"ct|snat"}`, "{{map}}"}}},
		{"Subnets", "How many of their addresses are leased", "percentunit", false, []line{{"mustang_pool_leases" + on + " / mustang_pool_addresses" + on, "{{pool}}"}}},
		{"Endpoints by network", "", "none", false, []line{{"sum by (network, mode) (mustang_network_endpoints" + on + ")", "{{network}} ({{mode}})"}}},
	}},
	{"The daemon itself", []panel{
		{"Memory", "", "bytes", false, []line{{`process_resident_memory_bytes{instance=~"$instance",job="mustang"}`, "{{instance}}"}}},
		{"CPU", "", "percentunit", false, []line{{`rate(process_cpu_seconds_total{instance=~"$instance",job="mustang"}[$__rate_interval])`, "{{instance}}"}}},
		{"Last reading of the configuration", "1 where it was right", "none", false, []line{{"mustang_config_last_reload_successful" + on, "{{instance}}"}}},
		{"Sources of these metrics", "0 where one cannot be read", "none", false, []line{{"mustang_source_up" + on, "{{source}}"}}},
	}},
}

const width = 24 // of Grafana's grid

type object = map[string]any

// dashboard is the file that Grafana imports.
func dashboard() ([]byte, error) {
	source := object{"type": "prometheus", "uid": "${datasource}"}
	var panels []object
	id, y := 0, 0
	for _, r := range rows {
		id++
		panels = append(panels, object{"id": id, "type": "row", "title": r.title, "collapsed": false, "panels": []object{}, "gridPos": grid(0, y, width, 1)})
		y++
		w, h := width/2, 8
		if r.panels[0].now {
			w, h = width/len(r.panels), 4
		}
		for i, p := range r.panels {
			id++
			panels = append(panels, p.object(id, source, grid(i*w%width, y+i*w/width*h, w, h)))
		}
		y += (len(r.panels)*w + width - 1) / width * h
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(object{
		"title": "mustang", "uid": "mustang", "tags": []string{"mustang", "docker"}, "schemaVersion": 39, "editable": true, "refresh": "30s",
		"description": "Made by go run ./metrics/gen.",
		"time":        object{"from": "now-6h", "to": "now"},
		"templating": object{"list": []object{
			{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
			{"name": "instance", "type": "query", "datasource": source, "query": "label_values(mustang_build_info, instance)", "label": "Host",
				"multi": true, "includeAll": true, "refresh": 2, "current": object{"text": "All", "value": "$__all"}},
		}},
		"panels": panels,
	})
	return out.Bytes(), err
}

func grid(x, y, w, h int) object { return object{"x": x, "y": y, "w": w, "h": h} }

func (p panel) object(id int, source, at object) object {
	kind := "timeseries"
	if p.now {
		kind = "stat"
	}
	var targets []object
	for i, l := range p.lines {
		targets = append(targets, object{"refId": string(rune('A' + i)), "datasource": source, "expr": l.expr, "legendFormat": l.legend, "instant": p.now})
	}
	return object{
		"id": id, "type": kind, "title": p.title, "description": p.about, "datasource": source, "gridPos": at, "targets": targets,
		"fieldConfig": object{"defaults": object{"unit": p.unit, "min": 0}, "overrides": []object{}},
	}
}
