// SPDX-License-Identifier: Apache-2.0

// Package metrics shows what mustang does to Prometheus.
//
// What happens rarely (a call of the engine's, an event) is counted as it happens, which costs an addition. All else is read from a
// [Host] when somebody asks, and costs nothing until then.
package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sirupsen/logrus"
)

// Host is what the metrics are read from. Its methods are called from several goroutines.
type Host interface {
	// Drops are the counters of the datapath, one for each way in which a device's packets or a sandbox's connections are refused.
	Drops() ([]Drop, error)
	// Maps are the datapath's maps, and how full they are.
	Maps() ([]Map, error)
	// Services are those of names, of published ports and hand-made ones.
	Services() ([]Service, error)
	// Networks are those that exist now.
	Networks() []Network
	// Pools are the subnets of which addresses are leased.
	Pools() []Pool
	// Daemon is how the parts of the daemon are.
	Daemon() (Daemon, error)
}

// Drop counts what was refused for one reason at one device.
type Drop struct {
	Reason    string
	Direction string // from-container, to-container or socket
	Device    int    // ifindex; 0 for sockets and where there is no room to tell devices apart
	Network   string // whose endpoint has the device now; "" for none
	Packets   uint64 // or connections, where Direction is socket
	Bytes     uint64
}

// Map is a map of the datapath.
type Map struct {
	Name    string // without prefix and version: "services"
	Entries int
	Max     int
}

// Service is a service with what its backends have got.
type Service struct {
	Network  string // name; "" for the host scope
	Name     string // of the service, or its frontend where it has none
	Backends []Backend
}

// Backend is one backend of a service.
type Backend struct {
	Name   string // of the container, or the address
	Active bool   // gets new connections now
	Traffic
}

// Traffic counts what a backend has got as long as its service has had it.
type Traffic struct {
	Connections uint64 // or flows, of protocols without connections
	BytesTo     uint64 // from clients to the backend
	BytesFrom   uint64
}

// Network is a network with the number of its endpoints.
type Network struct {
	Name      string // or its id while the name is unknown
	Mode      string
	Endpoints int
}

// Pool is a subnet of which addresses are leased.
type Pool struct {
	Subnet    string
	Leases    int
	Addresses float64 // that can be leased at all
}

// Daemon is how the parts of the daemon are. Its counters begin with the process.
type Daemon struct {
	Ready          bool
	Engine         bool // there is meant to be one
	Following      bool // it answers, and its events come
	StreamsLost    uint64
	Queries        map[string]uint64 // of names, by what became of them
	Writes         uint64            // of services to the maps
	WritesFailed   uint64
	WriteFailing   bool   // the last one failed, and is tried again
	EventsLost     uint64 // since the maps were made, which is usually the boot
	ReloadFailed   bool
	LastReload     time.Time // or the start, if there was none
	PublishedPorts int
}

// Build is what was built.
type Build struct{ Version, Commit, GoVersion string }

// Metrics is the metrics of one daemon.
type Metrics struct {
	registry *prometheus.Registry
	host     Host
	log      logrus.FieldLogger
	plugin   *prometheus.HistogramVec
	cni      *prometheus.HistogramVec
	api      *prometheus.HistogramVec
	lag      prometheus.Histogram

	mu      sync.Mutex // guards what follows, and lets one scrape read at a time
	drops   tally
	failing map[string]bool // sources that could not be read the last time
}

// New makes the metrics of host, which is asked nothing yet.
func New(host Host, build Build, log logrus.FieldLogger) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(), host: host, log: log, failing: map[string]bool{},
		plugin: pluginCalls.histograms(), cni: cniCalls.histograms(), api: apiRequests.histograms(),
		lag: eventLag.histograms().With(nil).(prometheus.Histogram),
	}
	about := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: buildInfo.Name, Help: buildInfo.Help,
		ConstLabels: prometheus.Labels{"version": build.Version, "commit": build.Commit, "goversion": build.GoVersion},
	}, func() float64 { return 1 })
	m.registry.MustRegister(about, m.plugin, m.cni, m.api, m.lag, collector{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// PluginCall counts a call of the engine's plugin protocol.
func (m *Metrics) PluginCall(method string, took time.Duration, err error) {
	m.plugin.WithLabelValues(method, resultOf(err)).Observe(took.Seconds())
}

// CNICall counts what a runtime has asked for: add, del, check, status or gc.
func (m *Metrics) CNICall(command string, took time.Duration, err error) {
	m.cni.WithLabelValues(command, resultOf(err)).Observe(took.Seconds())
}

// APIRequest counts a request of the command line's; request is its pattern, such as "GET /v1/services".
func (m *Metrics) APIRequest(request string, took time.Duration, err error) {
	m.api.WithLabelValues(request, resultOf(err)).Observe(took.Seconds())
}

// EventApplied counts an event of the engine's, which was applied so long after it happened.
func (m *Metrics) EventApplied(lag time.Duration) { m.lag.Observe(max(lag, 0).Seconds()) }

func resultOf(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
