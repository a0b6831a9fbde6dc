// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/mustang-net/mustang/bpf"
)

// Port is one or more ports of the host's in a row that lead to an endpoint's, one to one.
type Port struct {
	Host     netip.AddrPort // the first; the unspecified address stands for every address of its family
	Protocol bpf.Protocol   // TCP or UDP
	Port     uint16         // of the endpoint, the first
	Count    uint16         // 0 for one
}

// frontends are the ports that lead to the endpoint, each with its own.
func (e Endpoint) frontends() iter.Seq2[bpf.Frontend, uint16] {
	return func(yield func(bpf.Frontend, uint16) bool) {
		for _, p := range e.Ports {
			for i := range max(p.Count, 1) {
				f := bpf.Frontend{Addr: p.Host.Addr().Unmap(), Port: p.Host.Port() + i, Protocol: p.Protocol}
				if !yield(f, p.Port+i) {
					return
				}
			}
		}
	}
}

// backends is how many ports are other ones than the frontend's, and have a backend of their own.
func (e Endpoint) backends() int {
	n := 0
	for _, p := range e.Ports {
		if p.Host.Port() != p.Port {
			n += int(max(p.Count, 1))
		}
	}
	return n
}

// published is the service of a port of the host's. The endpoints that share it are replicas of one another:
// of one network, behind one port, with a name in common.
type published struct {
	id      uint32
	port    uint16
	members []*endpoint // by when they were published: the first has the port, the others share it
}

// checkPorts refuses ports that endpoints which are no replicas of this one have, on the same address or on all.
func (m *Manager) checkPorts(e Endpoint) error {
	fresh := m.identity(e)
	for f, port := range e.frontends() {
		for _, other := range m.others(f, e) {
			p := m.published[other]
			if len(p.members) == 1 && p.members[0].ID == e.ID {
				continue
			}
			if first := m.identity(p.members[0].Endpoint); other != f || first.Network != e.Network || p.port != port || !first.mayShare(fresh) {
				return conflictf("port %s is published by %s already: choose another, or stop it", portText(other), first.label())
			}
			for _, member := range p.members {
				if member.ID != e.ID && !sameSources(member.Sources, e.Sources) {
					return conflictf("port %s is published by %s already, for %s and not for %s: give both the same publish_sources",
						portText(f), member.label(), sourcesText(member.Sources), sourcesText(e.Sources))
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
	try := func(a netip.Addr) {
		other := f
		other.Addr = a
		if m.published[other] != nil {
			out = append(out, other)
		}
	}
	try(f.Addr)
	for a := range m.portAddrs {
		if familyOf(a) == familyOf(f.Addr) && a != f.Addr && (a.IsUnspecified() || f.Addr.IsUnspecified()) {
			try(a)
		}
	}
	return out
}

// countAddrs counts the ranges that the endpoint has published at addresses of the host's, one more or one less.
func (m *Manager) countAddrs(ep *endpoint, by int) {
	for _, p := range ep.Ports {
		a := p.Host.Addr().Unmap()
		if a == ep.IPv4 || a == ep.IPv6 {
			continue // routed: there is no other on it
		}
		if m.portAddrs[a] += by; m.portAddrs[a] == 0 {
			delete(m.portAddrs, a)
		}
	}
}

// identity is an endpoint with its container, which an engine has told of or which is expected; nil if neither.
func (m *Manager) identity(e Endpoint) *endpoint {
	id := &endpoint{Endpoint: e, container: m.byEndpoint[e.ID]}
	if ep := m.endpoints[e.ID]; id.container == nil && ep != nil {
		id.container = ep.expected
	}
	if id.container != nil {
		id.options, _ = readOptions(id.container.Labels, e.Options)
	}
	return id
}

// mayShare tells whether an endpoint could be a replica: names of containers that are being started may not be
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

// PublishedNames are the service names of the endpoints on a network that have published ports; all says that an engine
// has told those of each, and answers each name itself: as an alias, and not by a label alone.
func (m *Manager) PublishedNames(network string) (names []string, all bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.networks[network]
	if n == nil {
		return nil, false
	}
	aliases := map[string]bool{}
	for _, ep := range n.endpoints {
		if ep.container == nil {
			if len(ep.Ports) > 0 {
				return nil, false
			}
			continue
		}
		for _, alias := range ep.container.Aliases[ep.ID] {
			aliases[strings.ToLower(alias)] = true
		}
		if len(ep.Ports) > 0 {
			names = append(names, ep.claims()...)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return names, !slices.ContainsFunc(names, func(name string) bool { return !aliases[name] })
}

// portText is a port as people write one: 0.0.0.0:8080/tcp.
func portText(f bpf.Frontend) string {
	return netip.AddrPortFrom(f.Addr, f.Port).String() + "/" + strings.ToLower(f.Protocol.String())
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

// Label is what people call an endpoint: by its container, as far as that is known.
func (m *Manager) Label(endpointID string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ep := m.endpoints[endpointID]; ep != nil {
		return m.identity(ep.Endpoint).label()
	}
	return "the endpoint " + endpointID
}

// publish makes an endpoint a member of the services of its ports; unpublish undoes it.
func (m *Manager) publish(ep *endpoint) {
	m.countAddrs(ep, 1)
	for f, port := range ep.frontends() {
		p := m.published[f]
		if p == nil {
			p = &published{id: m.newID(f), port: port}
			m.published[f] = p
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
	m.countAddrs(ep, -1)
	for f := range ep.frontends() {
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

// sharing are the members of a port as a family reaches them. Of one that the maps had at start, those of whose containers nobody has told yet
// are as the maps have them ([Manager.undecided]), well or not.
func (m *Manager) sharing(f bpf.Frontend, p *published) []member {
	var out []member
	found := m.found[f]
	port := p.port
	if port == f.Port {
		port = 0 // of the frontend: a thousand of them have one backend
	}
	for i, ep := range p.members {
		if found != nil && ep.unread() && ep.PortsSince.Before(m.begun) {
			continue
		}
		had := found != nil && p.members[0].unread() && m.leads(found, ep.addr(familyOf(f.Addr)))
		if i > 0 && !had && !p.members[0].shares(ep) {
			continue // it is not known to be a replica, or known not to be one
		}
		phase := ep.phase()
		if ep.unread() {
			phase = PhaseReady // it is being started, and nobody has told of it yet
		}
		if a := ep.addr(familyOf(f.Addr)); a.IsValid() {
			out = append(out, member{key: keyOf(a, port, ep.Cookie), phase: phase, weight: max(ep.options.weight, 1)})
		}
	}
	return out
}

// leads tells whether one of the backends has the address.
func (m *Manager) leads(ids []uint32, a netip.Addr) bool {
	return slices.ContainsFunc(ids, func(id uint32) bool {
		b, known := m.backends.byID[id]
		return known && b.key.address() == a
	})
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

// portFacts are what the entries of an endpoint's ports depend on, besides what [Manager.publish] marks them for.
type portFacts struct {
	phase        Phase
	known, alive bool // its container; itself
	weight       uint32
	strict       bool
	names        string
}

func (ep *endpoint) portFacts() portFacts {
	return portFacts{ep.phase(), ep.container != nil, ep.gone.IsZero(), ep.options.weight, ep.options.strict, strings.Join(ep.claims(), ",")}
}

// settlePorts marks the ports of an endpoint if anything changed for them: there may be thousands, and engines tell
// much. It tells of those that the endpoint cannot have, once its names are known.
func (m *Manager) settlePorts(ep *endpoint) {
	if len(ep.Ports) == 0 {
		return
	}
	facts := ep.portFacts()
	changed := facts != ep.settled
	ep.settled = facts
	for f := range ep.frontends() {
		if changed {
			m.mark(f)
		}
		p := m.published[f]
		if p == nil || ep.container == nil || len(p.members) == 0 {
			continue
		}
		if first := p.members[0]; first != ep && first.container != nil && !first.shares(ep) && !ep.denied {
			ep.denied = true
			m.log.WithField("container", ep.container.Name).
				Errorf("port %s is %s's, and leads to it alone: they have no service name in common. Stop one of them, or choose another port", portText(f), first.label())
		}
	}
}
