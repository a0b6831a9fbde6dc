// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

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
// of one network, behind one port, with a name in common.
type published struct {
	id      uint32
	net     *network
	port    uint16
	members []*endpoint // by when they were published: the first has the port, the others share it
}

// number is a port of the host's, whatever its address.
type number struct {
	port     uint16
	protocol bpf.Protocol
}

// checkPorts refuses ports that endpoints which are no replicas of this one have, on the same address or on all.
func (m *Manager) checkPorts(e Endpoint) error {
	fresh := &endpoint{Endpoint: e, container: m.byEndpoint[e.ID]}
	for _, port := range e.Ports {
		f := port.frontend()
		for _, other := range m.others(f, e) {
			p := m.published[other]
			if len(p.members) == 1 && p.members[0].ID == e.ID {
				continue
			}
			if first := p.members[0]; other != f || first.Network != e.Network || p.port != port.Port || !first.mayShare(fresh) {
				return conflictf("port %s is published by %s already: choose another, or stop it", text(other), first.label())
			}
			for _, member := range p.members {
				if member.ID != e.ID && !sameSources(member.Sources, e.Sources) {
					return conflictf("port %s is published by %s already, for %s and not for %s: give both the same publish_sources",
						text(f), member.label(), sourcesText(member.Sources), sourcesText(e.Sources))
				}
			}
		}
	}
	return nil
}

// others are the frontends that are published and overlap f, which e asks for. All addresses are the host's: an
// endpoint's own, where it is routed, is none of them.
func (m *Manager) others(f bpf.Frontend, e Endpoint) []bpf.Frontend {
	if f.Addr == e.IPv4 || f.Addr == e.IPv6 {
		return nil
	}
	var out []bpf.Frontend
	for _, other := range m.numbers[number{f.Port, f.Protocol}] {
		all := familyOf(other.Addr) == familyOf(f.Addr) && (other.Addr.IsUnspecified() || f.Addr.IsUnspecified())
		if other.Addr == f.Addr || all && m.byAddr[other.Addr] == nil {
			out = append(out, other)
		}
	}
	return out
}

// mayShare tells whether an endpoint could be a replica: names of containers that are being started are not
// known yet.
func (ep *endpoint) mayShare(other *endpoint) bool {
	if ep.ID == other.ID || ep.container == nil {
		return true
	}
	if other.container == nil {
		return len(ep.claims()) > 0
	}
	return ep.shares(other)
}

// shares tells whether both are known to have a service name in common.
func (ep *endpoint) shares(other *endpoint) bool {
	names := ep.claims()
	return slices.ContainsFunc(other.claims(), func(name string) bool { return slices.Contains(names, name) })
}

func sameSources(a, b []netip.Prefix) bool {
	return (a == nil) == (b == nil) && slices.Equal(sorted(a), sorted(b))
}

// sorted are the prefixes in order and each once; nil stays nil.
func sorted(prefixes []netip.Prefix) []netip.Prefix {
	prefixes = slices.Clone(prefixes)
	for i := range prefixes {
		prefixes[i] = prefixes[i].Masked()
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return slices.Compact(prefixes)
}

func sourcesText(prefixes []netip.Prefix) string {
	if prefixes == nil {
		return "everybody"
	}
	if len(prefixes) == 0 {
		return "nobody"
	}
	var texts []string
	for _, p := range sorted(prefixes) {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}

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
			n := number{f.Port, f.Protocol}
			m.numbers[n] = append(m.numbers[n], f)
		}
		if at, is := slices.BinarySearchFunc(p.members, ep, comparePublished); !is {
			p.members = slices.Insert(p.members, at, ep)
		}
		m.mark(f)
	}
}

func comparePublished(a, b *endpoint) int {
	return cmp.Or(a.PortsSince.Compare(b.PortsSince), compareID(a, b))
}

// Unpublish takes the ports of an endpoint back, whether it is alive or [Manager.Gone].
func (m *Manager) Unpublish(endpointID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ep := m.endpoints[endpointID]
	if ep == nil {
		return nil
	}
	m.unpublish(ep)
	ep.Ports = nil
	return m.finish(m.commit(0, nil))
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
			n := number{f.Port, f.Protocol}
			left := slices.DeleteFunc(m.numbers[n], func(other bpf.Frontend) bool { return other == f })
			if m.numbers[n] = left; len(left) == 0 {
				delete(m.numbers, n)
			}
		}
		m.mark(f)
	}
}

// backends are the members as a port of a family reaches them.
func (p *published) backends(f bpf.Frontend) []member {
	var out []member
	port := p.port
	if port == f.Port {
		port = 0 // of the frontend: a thousand of them have one backend
	}
	for i, ep := range p.members {
		if i > 0 && !p.members[0].shares(ep) {
			continue // it is not known to be a replica, or known not to be one
		}
		phase := ep.phase()
		if ep.container == nil && ep.gone.IsZero() {
			phase = PhaseReady // it is being started, and nobody has told of it yet
		}
		if a := ep.addr(familyOf(f.Addr)); a.IsValid() {
			out = append(out, member{key: keyOf(a, port, ep.Cookie), phase: phase, weight: max(ep.options.weight, 1)})
		}
	}
	return out
}

// sources are who may reach the port: the same for all members.
func (p *published) sources() []netip.Prefix {
	if len(p.members) == 0 {
		return []netip.Prefix{}
	}
	return sorted(p.members[0].Sources)
}

func (p *published) strict() bool {
	return slices.ContainsFunc(p.members, func(ep *endpoint) bool { return ep.options.strict })
}

// settlePorts marks the ports of an endpoint, and tells of those that it cannot have, once its names are known.
func (m *Manager) settlePorts(ep *endpoint) {
	for _, port := range ep.Ports {
		f := port.frontend()
		m.mark(f)
		p := m.published[f]
		if p == nil || ep.container == nil || len(p.members) == 0 {
			continue
		}
		if first := p.members[0]; first != ep && first.container != nil && !first.shares(ep) && !ep.denied {
			ep.denied = true
			m.log.WithField("container", ep.container.Name).
				Errorf("port %s is %s's, and leads to it alone: they have no service name in common. Stop one of them, or choose another port", text(f), first.label())
		}
	}
}
