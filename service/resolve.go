// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// tasksPrefix before a service's name asks for the addresses of its backends.
const tasksPrefix = "tasks."

// Resolve says what a name means in the sandbox with this netns cookie, in any case and with or without
// the final dot. It looks where the engine looks, in the engine's order: the whole name in every
// network of the sandbox, then what comes before each dot in the network called by the rest.
func (m *Manager) Resolve(cookie uint64, name string) Answer {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	m.mu.RLock()
	defer m.mu.RUnlock()
	endpoints := m.sandbox(cookie)
	if len(endpoints) == 0 || name == "" {
		return Answer{}
	}
	var idle Answer // of a name that nobody has now, unless another network knows somebody by it
	for cut := len(name); cut > 0; cut = strings.LastIndexByte(name[:cut], '.') {
		for _, ep := range endpoints {
			if cut < len(name) && !strings.EqualFold(ep.net.Name, name[cut+1:]) {
				continue
			}
			switch answer, found, used := ep.lookup(name[:cut]); {
			case used:
				return answer
			case found && !idle.Known:
				idle = answer
			}
		}
	}
	return idle
}

// sandbox returns the endpoints of a sandbox whose networks are known, in the engine's order: higher
// priority, leading out, both families, by name of the network.
func (m *Manager) sandbox(cookie uint64) []*endpoint {
	endpoints := slices.DeleteFunc(slices.Clone(m.byCookie[cookie]), func(ep *endpoint) bool { return ep.net == nil })
	slices.SortFunc(endpoints, func(a, b *endpoint) int {
		return cmp.Or(
			cmp.Compare(b.priority(), a.priority()),
			cmp.Compare(a.net.order(), b.net.order()),
			strings.Compare(a.net.Name, b.net.Name),
			strings.Compare(a.net.ID, b.net.ID))
	})
	return endpoints
}

func (ep *endpoint) priority() int {
	if ep.container == nil {
		return 0
	}
	return ep.container.Priorities[ep.ID]
}

// order ranks networks of one priority as the engine does, by the gateways they bring.
func (n *network) order() int {
	switch {
	case n.Internal:
		return 2
	case n.IPv4 && n.IPv6:
		return 0
	}
	return 1
}

func (ep *endpoint) unread() bool { return ep.container == nil && ep.gone.IsZero() }

// lookup finds a name in the network of ep. used says that somebody has it, and ends the search, also where the name is a
// container's own and so the engine's to answer.
func (ep *endpoint) lookup(name string) (answer Answer, found, used bool) {
	n := ep.net
	if s := n.names[name]; s != nil && n.VIP {
		if len(s.members) == 1 && s.members[0].Cookie == ep.Cookie {
			return answerWith([]netip.Addr{s.members[0].IPv4, s.members[0].IPv6}), true, true
		}
		if len(s.members) > 0 || !n.engineNames(name) {
			return answerWith(s.vips[:]), true, len(s.members) > 0
		}
	}
	if service, ok := strings.CutPrefix(name, tasksPrefix); ok && n.VIP {
		if s := n.names[service]; s != nil && (len(s.members) > 0 || !n.engineNames(service)) {
			return answerWith(s.tasks()), true, len(s.members) > 0
		}
	}
	used = n.engineNames(name)
	return Answer{}, used, used
}

// engineNames reports whether the engine has an answer of its own for a name: a container is called
// so, or has the alias and no VIP.
func (n *network) engineNames(name string) bool {
	for _, ep := range n.endpoints {
		if ep.alive() && (strings.EqualFold(ep.container.Name, name) || (ep.options.off || !n.VIP) && slices.Contains(ep.claims(), name)) {
			return true
		}
	}
	return false
}

// tasks are the addresses of the backends that get new flows.
func (s *named) tasks() (addrs []netip.Addr) {
	for family := range s.vips {
		members := s.backends(family)
		tier := active(members, s.strict())
		for _, b := range members {
			if b.phase == tier {
				addrs = append(addrs, b.key.address())
			}
		}
	}
	return addrs
}

func answerWith(addrs []netip.Addr) Answer {
	a := Answer{Known: true}
	for _, addr := range addrs {
		switch {
		case addr.Is4():
			a.Addrs4 = append(a.Addrs4, addr)
		case addr.Is6():
			a.Addrs6 = append(a.Addrs6, addr)
		}
	}
	return a
}

// ResolvePTR returns the name of a VIP as the sandbox with this netns cookie may know it: "NAME.NETWORK"
// for the service of a name in one of its networks, or the name of the hand-made service with the lowest
// id that has one. ok is false for any other address, VIPs of networks that it is not on included: their
// names are none of its business.
func (m *Manager) ResolvePTR(cookie uint64, addr netip.Addr) (name string, ok bool) {
	addr = addr.Unmap()
	m.mu.RLock()
	defer m.mu.RUnlock()
	if s := m.nameVIPs[addr]; s != nil {
		if !slices.ContainsFunc(m.byCookie[cookie], func(ep *endpoint) bool { return ep.net == s.net }) {
			return "", false
		}
		if s.net.Name == "" {
			return s.name, true
		}
		return s.name + "." + s.net.Name, true
	}
	for _, id := range m.handVIPs[addr] {
		if name := m.hand[id].Name; name != "" {
			return name, true
		}
	}
	return "", false
}

// Unread reports whether addr is an endpoint's whose container no source has told of yet, so that its
// names are not known: an answer of the engine that names it may have to be a VIP.
func (m *Manager) Unread(addr netip.Addr) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	ep := m.byAddr[addr.Unmap()]
	return ep != nil && ep.net != nil && ep.net.VIP && ep.unread()
}
