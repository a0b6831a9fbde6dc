// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/metrics"
)

// figures are what the metrics are read from.
type figures struct{ *host }

func newMetrics(h *host) *metrics.Metrics {
	version, commit := versionAndCommit()
	return metrics.New(figures{h}, metrics.Build{Version: version, Commit: commit, GoVersion: runtime.Version()}, h.log)
}

// observe counts a request of the API, and what a runtime asks through it.
func (h *host) observe(request string, took time.Duration, err error) {
	h.metrics.APIRequest(request, took, err)
	if command, ok := strings.CutPrefix(request, "POST /v1/cni/"); ok {
		h.metrics.CNICall(command, took, err)
	}
}

// Drops implements [metrics.Host].
func (f figures) Drops() ([]metrics.Drop, error) {
	list, err := f.datapath.Drops()
	if err != nil {
		return nil, err
	}
	of := f.deviceNetworks()
	out := make([]metrics.Drop, 0, len(list))
	for _, d := range list {
		out = append(out, metrics.Drop{
			Reason: d.Reason, Direction: d.Direction, Device: d.IfIndex, Network: of[d.IfIndex], Packets: d.Packets, Bytes: d.Bytes,
		})
	}
	for reason, packets := range f.tables.Drops() {
		out = append(out, metrics.Drop{Reason: reason, Direction: "nftables", Packets: packets})
	}
	return out, nil
}

// deviceNetworks tells whose endpoint a device is the host's end of. A slave's traffic is refused at its parent, which is one
// network's alone.
func (f figures) deviceNetworks() map[int]string {
	names := f.networkNames()
	out := map[int]string{}
	for _, e := range f.driver.Endpoints() {
		out[e.Index] = names[e.NetworkID]
	}
	delete(out, 0)
	return out
}

// networkNames are what people call the networks, by id.
func (f figures) networkNames() map[string]string {
	out := map[string]string{}
	for _, n := range f.driver.Networks() {
		out[n.ID] = cmp.Or(n.Name, n.ID)
	}
	return out
}

// Maps implements [metrics.Host].
func (f figures) Maps() ([]metrics.Map, error) {
	desired, err := f.datapath.Fill()
	if err != nil {
		return nil, err
	}
	caches, err := f.datapath.Caches()
	if err != nil {
		return nil, err
	}
	var out []metrics.Map
	for _, m := range slices.Concat(desired, caches) {
		out = append(out, metrics.Map(m))
	}
	return out, nil
}

// Services implements [metrics.Host].
func (f figures) Services() ([]metrics.Service, error) {
	counted, err := f.datapath.Traffic()
	if err != nil {
		return nil, err
	}
	type pair struct{ service, backend uint32 }
	got := make(map[pair]metrics.Traffic, len(counted))
	for _, t := range counted {
		got[pair{t.Service, t.Backend}] = metrics.Traffic{Connections: t.Connections, BytesTo: t.ToBackend, BytesFrom: t.FromBackend}
	}
	var out []metrics.Service
	for _, v := range slices.Concat(f.services.List(), f.services.Published()) {
		s := metrics.Service{Network: v.Network, Name: cmp.Or(v.Name, frontendText(v.Frontends))}
		for _, b := range v.Backends {
			s.Backends = append(s.Backends, metrics.Backend{
				Name: cmp.Or(b.Container, b.Addr.Addr().String()), Active: b.Active, Traffic: got[pair{v.ID, b.ID}],
			})
		}
		out = append(out, s)
	}
	return out, nil
}

// frontendText names a service by hand that has no name.
func frontendText(list []bpf.Frontend) string {
	if len(list) == 0 {
		return ""
	}
	return netip.AddrPortFrom(list[0].Addr, list[0].Port).String() + "/" + strings.ToLower(list[0].Protocol.String())
}

// Networks implements [metrics.Host].
func (f figures) Networks() []metrics.Network {
	counts := map[string]int{}
	for _, e := range f.driver.Endpoints() {
		counts[e.NetworkID]++
	}
	var out []metrics.Network
	for _, n := range f.driver.Networks() {
		out = append(out, metrics.Network{Name: cmp.Or(n.Name, n.ID), Mode: n.Options.Mode, Endpoints: counts[n.ID]})
	}
	return out
}

// Pools implements [metrics.Host].
func (f figures) Pools() []metrics.Pool {
	seen := map[netip.Prefix]bool{} // each subnet is of one pool, but for those of different address spaces
	var out []metrics.Pool
	for _, p := range f.ipam.Pools() {
		if seen[p.Subnet] {
			continue
		}
		seen[p.Subnet] = true
		from := p.Subnet
		if p.SubPool.IsValid() {
			from = p.SubPool
		}
		out = append(out, metrics.Pool{Subnet: p.Subnet.String(), Leases: p.Leases, Addresses: addressesOf(from)})
	}
	return out
}

// addressesOf is how many addresses a subnet has for endpoints and the gateway; IPv4 keeps two back.
func addressesOf(p netip.Prefix) float64 {
	n := math.Pow(2, float64(p.Addr().BitLen()-p.Bits()))
	if p.Addr().Is4() && n > 2 {
		n -= 2
	}
	return n
}

// Daemon implements [metrics.Host].
func (f figures) Daemon() (metrics.Daemon, error) {
	lost, err := f.datapath.LostEvents()
	if err != nil {
		return metrics.Daemon{}, err
	}
	writes, last := f.services.Writes(), f.inForce.last.Load()
	d := metrics.Daemon{
		Ready: f.ready(), Queries: f.resolver.Queries(), Writes: writes.All, WritesFailed: writes.Failed, WriteFailing: f.services.Err() != nil,
		ReloadFailed: last.failed, LastReload: last.at, PublishedPorts: countPorts(f.driver.Ports()), EventsLost: lost,
	}
	if f.engine != nil {
		d.Engine = true
		d.Following, d.StreamsLost = f.engine.State()
	}
	return d, nil
}

func countPorts(list []driver.PublishedPort) (n int) {
	for _, p := range list {
		n += int(max(p.Count, 1))
	}
	return n
}

// ready says that all containers are known, and what should be in the maps is there. Status looks at more, which a scrape shows by itself.
func (h *host) ready() bool {
	return h.knows() && h.services.Err() == nil
}

var _ metrics.Host = figures{}
