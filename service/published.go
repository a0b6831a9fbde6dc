// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
)

// Port is a port of the host's that leads to one of an endpoint's.
type Port struct {
	Host     netip.AddrPort // the unspecified address stands for every address of its family
	Protocol bpf.Protocol   // TCP or UDP
	Port     uint16         // of the endpoint
}

func (p Port) frontend() bpf.Frontend {
	return bpf.Frontend{Addr: p.Host.Addr().Unmap(), Port: p.Host.Port(), Protocol: p.Protocol}
}

// published is the service of a port of the host's. The endpoints that share it are replicas of one another:
// of one network, behind one port.
type published struct {
	id      uint32
	net     *network
	port    uint16
	members []*endpoint // by id
}

// checkPorts refuses ports that endpoints which are no replicas of this one have.
func (m *Manager) checkPorts(e Endpoint) error {
	for _, port := range e.Ports {
		p := m.published[port.frontend()]
		if p == nil {
			continue
		}
		for _, other := range p.members {
			if other.ID == e.ID {
				continue
			}
			if other.Network != e.Network || p.port != port.Port || !other.replicated() {
				return conflictf("port %s is published by %s already: choose another, or stop it", text(port.frontend()), other.label())
			}
		}
	}
	return nil
}

// replicated tells whether the endpoint has a service name, so that others may be what it is. One of which
// nothing has been told yet may.
func (ep *endpoint) replicated() bool { return ep.container == nil || len(ep.claims()) > 0 }

// label is the name of the endpoint's container, or its id.
func (ep *endpoint) label() string {
	if ep.container != nil && ep.container.Name != "" {
		return "the container " + ep.container.Name
	}
	return "the endpoint " + ep.ID
}

// publish makes an endpoint a member of the services of its ports; unpublish undoes it.
func (m *Manager) publish(ep *endpoint) {
	for _, port := range ep.Ports {
		f := port.frontend()
		p := m.published[f]
		if p == nil {
			p = &published{id: m.newID(f), net: ep.net, port: port.Port}
			m.published[f] = p
		}
		if at, is := slices.BinarySearchFunc(p.members, ep, compareID); !is {
			p.members = slices.Insert(p.members, at, ep)
		}
		m.mark(f)
	}
}

func (m *Manager) unpublish(ep *endpoint) {
	for _, port := range ep.Ports {
		f := port.frontend()
		p := m.published[f]
		if p == nil {
			continue
		}
		p.members = slices.DeleteFunc(p.members, func(other *endpoint) bool { return other == ep })
		if len(p.members) == 0 {
			delete(m.published, f)
			delete(m.ids, p.id)
		}
		m.mark(f)
	}
}

// backends are the members as a port of a family reaches them.
func (p *published) backends(f bpf.Frontend) []member {
	var out []member
	for _, ep := range p.members {
		phase := ep.phase()
		if ep.container == nil && ep.gone.IsZero() {
			phase = PhaseReady // it is being started, and nobody has told of it yet
		}
		if a := ep.addr(familyOf(f.Addr)); a.IsValid() {
			out = append(out, member{key: keyOf(a, p.port, ep.Cookie), phase: phase, weight: max(ep.options.weight, 1)})
		}
	}
	return out
}

func (p *published) strict() bool {
	return slices.ContainsFunc(p.members, func(ep *endpoint) bool { return ep.options.strict })
}
