// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Kind is the type of a metric.
type Kind string

// The types of metrics.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Metric describes a metric of mustang's own.
type Metric struct {
	Name   string
	Kind   Kind
	Labels []string
	Help   string
	Bound  string // how many series there can be
}

// Catalog describes every metric of mustang's own, in the order of the documentation.
func Catalog() []Metric {
	var out []Metric
	for _, f := range families {
		out = append(out, f.Metric)
	}
	return out
}

// MaxBackends bounds the series of each metric about backends: of more, those of the services listed last are left out, and counted.
const MaxBackends = 10000

// family is a metric with its description as Prometheus wants it.
type family struct {
	Metric
	desc    *prometheus.Desc
	buckets []float64
}

var families []*family

func define(kind Kind, name, help, bound string, labels ...string) *family {
	f := &family{Metric: Metric{name, kind, labels, help, bound}, desc: prometheus.NewDesc(name, help, labels, nil)}
	families = append(families, f)
	return f
}

func (f *family) in(buckets ...float64) *family { f.buckets = buckets; return f }

const (
	perNetwork = "one a network"
	perBackend = "one a backend of each service, at most 10,000"
	one        = "1"
)

// Seconds. A call of the engine's has 5 of them.
var (
	callTimes = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
	lagTimes  = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30}
)

// What there is, in the order of the documentation.
var (
	buildInfo = define(Gauge, "mustang_build_info", "What was built; always 1.", one, "version", "commit", "goversion")
	ready     = define(Gauge, "mustang_ready", "1 if the daemon knows all containers, and what services should be is in the maps.", one)
	sourceUp  = define(Gauge, "mustang_source_up", "0 if the metrics of this source could not be read for this scrape: drops, maps, services or daemon.", "4", "source")

	drops        = define(Counter, "mustang_drops_total", "Packets, or connections where direction is socket, that were refused, by reason.", "one a reason, direction and network that had one", "reason", "direction", "network")
	droppedBytes = define(Counter, "mustang_dropped_bytes_total", "Bytes of refused packets, by reason.", "one a reason, direction and network that had one", "reason", "direction", "network")

	connections = define(Counter, "mustang_service_connections_total", "Connections (or flows, of other protocols than TCP) that a backend of a service has got.", perBackend, "network", "service", "backend")
	bytesTo     = define(Counter, "mustang_service_received_bytes_total", "Bytes that a backend of a service has received from clients of it.", perBackend, "network", "service", "backend")
	bytesFrom   = define(Counter, "mustang_service_sent_bytes_total", "Bytes that a backend of a service has sent to clients of it.", perBackend, "network", "service", "backend")
	active      = define(Gauge, "mustang_service_active_backends", "Backends of a service that get new connections now; 0: it refuses them.", "one a service, at most 10,000", "network", "service")
	leftOut     = define(Gauge, "mustang_service_backends_left_out", "Backends that are left out of the metrics about services, for there are more than 10,000.", one)

	mapEntries = define(Gauge, "mustang_map_entries", "Entries of a map of the datapath: ct are flows that are translated per packet, snat those that are masqueraded, two entries each.", "one a map", "map")
	mapMax     = define(Gauge, "mustang_map_max_entries", "Entries that a map of the datapath has room for.", "one a map", "map")

	endpoints     = define(Gauge, "mustang_network_endpoints", "Endpoints of a network.", perNetwork, "network", "mode")
	ports         = define(Gauge, "mustang_published_ports", "Ports of the host that lead to containers.", one)
	leases        = define(Gauge, "mustang_pool_leases", "Addresses of a subnet that are leased.", "one a subnet", "pool")
	poolAddresses = define(Gauge, "mustang_pool_addresses", "Addresses of a subnet that can be leased.", "one a subnet", "pool")

	pluginCalls = define(Histogram, "mustang_plugin_call_duration_seconds", "Time that a call of the engine's plugin protocol took; after 5 s it is answered with an error.", "one a method and result (22 × 2)", "method", "result").in(callTimes...)
	cniCalls    = define(Histogram, "mustang_cni_call_duration_seconds", "Time that the daemon took for what a runtime asked of the CNI plugin.", "one a command and result (5 × 2)", "command", "result").in(callTimes...)
	apiRequests = define(Histogram, "mustang_api_request_duration_seconds", "Time that a request of the command line took.", "one a request and result (about 20 × 2)", "request", "result").in(callTimes...)

	following   = define(Gauge, "mustang_engine_up", "1 while the engine answers and its events come; missing where docker_socket is off.", one)
	streamsLost = define(Counter, "mustang_engine_streams_lost_total", "Times that the engine's events broke off; what they would have told is then read anew.", one)
	eventLag    = define(Histogram, "mustang_engine_event_lag_seconds", "Time from an event of the engine's, by its own clock, until it was applied.", one).in(lagTimes...)

	queries      = define(Counter, "mustang_dns_queries_total", "Queries for names in sandboxes, by what became of them: service (answered as a service's), forwarded to the engine, failed there, malformed, or dropped by the limits of a sandbox.", "5", "result")
	writes       = define(Counter, "mustang_service_writes_total", "Times that services were written to the maps.", "2", "result")
	writeFailing = define(Gauge, "mustang_service_write_failing", "1 while what services should be could not be written to the maps, which is tried again.", one)
	eventsLost   = define(Counter, "mustang_monitor_events_lost_total", "Events that `mustang monitor` did not get in time.", one)

	reloadOK   = define(Gauge, "mustang_config_last_reload_successful", "0 if the configuration could not be read the last time, and the one before goes on.", one)
	reloadTime = define(Gauge, "mustang_config_last_reload_timestamp_seconds", "When the configuration was last read.", one)
)

// described are the families that the collector reads; histograms describe themselves.
func described() []*family {
	return slices.DeleteFunc(slices.Clone(families), func(f *family) bool { return f.Kind == Histogram || f == buildInfo })
}

func (f *family) histograms() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: f.Name, Help: f.Help, Buckets: f.buckets}, f.Labels)
}

func (f *family) value(v float64, labels ...string) prometheus.Metric {
	kind := prometheus.GaugeValue
	if f.Kind == Counter {
		kind = prometheus.CounterValue
	}
	return prometheus.MustNewConstMetric(f.desc, kind, v, labels...)
}
