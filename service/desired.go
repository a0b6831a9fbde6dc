// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"

	"github.com/mustang-net/mustang/bpf"
)

// desired is the entry that facts ask for at a frontend; its slots follow from the members.
type desired struct {
	service bpf.Service
	members []member
	strict  bool
}

// desired computes the entry of a frontend from the facts; false means that there should be none.
func (m *Manager) desired(f bpf.Frontend) (desired, bool) {
	if h := m.byFrontend[f]; h != nil {
		return desired{
			service: bpf.Service{Frontend: f, ID: h.id, Affinity: h.Affinity},
			members: h.members(),
		}, true
	}
	if p := m.published[f]; p != nil {
		return desired{
			service: bpf.Service{Frontend: f, ID: p.id, Published: true, Sources: p.sources()},
			members: m.sharing(f, p),
			strict:  p.strict(),
		}, true
	}
	if f != f.Head() {
		return desired{}, false
	}
	if s := m.nameVIPs[f.Addr]; s != nil {
		return desired{
			service: bpf.Service{Frontend: f, ID: s.id, Network: s.net.Number},
			members: s.backends(familyOf(f.Addr)),
			strict:  s.strict(),
		}, true
	}
	if ids := m.handVIPs[f.Addr]; len(ids) > 0 {
		// Without slots: it makes the address a VIP and refuses its other ports. The lowest id is as
		// good as any and does not depend on the order in which the services came.
		return desired{service: bpf.Service{Frontend: f, ID: ids[0]}}, true
	}
	return desired{}, false
}

// named is the service of a name in a network.
type named struct {
	id      uint32
	name    string // in lower case
	net     *network
	source  Source
	vips    [2]netip.Addr // by family; invalid where it has none
	members []*endpoint   // alive, by id
	warned  netip.Addr    // VIP that was asked for and refused
}

// strict says that only ready members get flows: one member that asks for it is enough.
func (s *named) strict() bool {
	for _, ep := range s.members {
		if ep.options.strict {
			return true
		}
	}
	return false
}

// backends are the members that have an address of a family.
func (s *named) backends(family int) []member {
	members := make([]member, 0, len(s.members))
	for _, ep := range s.members {
		if a := ep.addr(family); a.IsValid() {
			members = append(members, member{key: keyOf(a, 0, ep.Cookie), phase: ep.phase(), weight: ep.options.weight})
		}
	}
	return members
}
