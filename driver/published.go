// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/service"
)

// Published are ports of the host's in a row that lead to an endpoint's, one to one.
type Published struct {
	Protocol bpf.Protocol   `json:"protocol"`
	Host     netip.AddrPort `json:"host"` // the first; the unspecified address stands for all of its family
	Port     uint16         `json:"port"` // of the endpoint, the first
	Count    uint16         `json:"count"`
	// Routed says that Host is the endpoint's own address (gateway_mode=routed), so that no port of the host's is taken.
	Routed bool `json:"routed,omitempty"`
}

// rows is how many rows of ports can go on at a time: one of each family, of the host's and routed.
const rows = 4

// add records a port, together with the ones before it if they are in a row. Ports come in order, so that only the last
// rows can go on: a thousand that are not in a row are not compared with one another.
func (e *Endpoint) add(p Published) {
	for i := max(0, len(e.Published)-rows); i < len(e.Published); i++ {
		q := &e.Published[i]
		if q.Protocol == p.Protocol && q.Routed == p.Routed && q.Host.Addr() == p.Host.Addr() &&
			q.Host.Port()+q.Count == p.Host.Port() && q.Port+q.Count == p.Port {
			q.Count++
			return
		}
	}
	e.Published = append(e.Published, p)
}

// includes tells whether a port of the host's is among them.
func (p Published) includes(port uint16) bool {
	return !p.Routed && port >= p.Host.Port() && port-p.Host.Port() < p.Count
}

// each calls fn for every single port.
func (p Published) each(fn func(host netip.AddrPort, port uint16)) {
	for i := range p.Count {
		fn(netip.AddrPortFrom(p.Host.Addr(), p.Host.Port()+i), p.Port+i)
	}
}

// on are the same ports at another address of the host's.
func (p Published) on(host netip.Addr) Published {
	p.Host = netip.AddrPortFrom(host, p.Host.Port())
	return p
}

// transport is the protocol as sockets and people write it: tcp or udp.
func transport(p bpf.Protocol) string { return strings.ToLower(p.String()) }

// ports are the endpoint's published ports of the families it has, as services know them.
func (e *Endpoint) ports() []service.Port {
	var out []service.Port
	for _, p := range e.Published {
		if !slices.ContainsFunc(e.addrs(), func(a netip.Addr) bool { return a.Is6() == p.Host.Addr().Is6() }) {
			continue
		}
		out = append(out, service.Port{Host: p.Host, Protocol: p.Protocol, Port: p.Port, Count: p.Count})
	}
	return out
}

// has tells whether the endpoint has the port of the host's on one of the addresses.
func (e *Endpoint) has(protocol bpf.Protocol, hosts []netip.Addr, port uint16) bool {
	return slices.ContainsFunc(e.Published, func(p Published) bool {
		a := p.Host.Addr()
		return p.Protocol == protocol && p.includes(port) &&
			slices.ContainsFunc(hosts, func(h netip.Addr) bool {
				return a == h || a.Is6() == h.Is6() && (a.IsUnspecified() || h.IsUnspecified())
			})
	})
}

// routes tells whether the endpoint has a port published at its own address already.
func (e *Endpoint) routes(protocol bpf.Protocol, own netip.Addr, port uint16) bool {
	return slices.ContainsFunc(e.Published, func(p Published) bool {
		return p.Routed && p.Protocol == protocol && p.Host.Addr() == own && port >= p.Port && port-p.Port < p.Count
	})
}

// sources are who may reach the endpoint's published ports: as it says itself, or else its network. nil is everybody.
func (m *Manager) sources(e *Endpoint) []netip.Prefix {
	if text, ok := e.Options[optionSources]; ok {
		if sources, err := parseSources(text); err == nil { // as checked when it was made
			return sources
		}
	}
	if n := m.networks[e.NetworkID]; n != nil {
		return n.Options.Sources
	}
	return nil
}

// PublishedPort are ports in a row that lead to an endpoint.
type PublishedPort struct {
	Endpoint string
	Network  string // id
	Published
	Addrs   []netip.Addr   // of the endpoint
	Sources []netip.Prefix // that reach them; nil for everybody
}

// Ports lists what is published, by host port.
func (m *Manager) Ports() []PublishedPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []PublishedPort
	for _, e := range m.endpoints {
		for _, p := range e.Published {
			out = append(out, PublishedPort{Endpoint: e.ID, Network: e.NetworkID, Published: p, Addrs: e.addrs(), Sources: m.sources(e)})
		}
	}
	slices.SortFunc(out, func(a, b PublishedPort) int {
		return cmp.Or(cmp.Compare(a.Host.Port(), b.Host.Port()), cmp.Compare(a.Protocol, b.Protocol),
			a.Host.Addr().Compare(b.Host.Addr()), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return out
}
