// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
)

// List returns every service as it stands, by id.
func (m *Manager) List() []View {
	m.mu.RLock()
	defer m.mu.RUnlock()
	views := make([]View, 0, len(m.hand)+len(m.nameVIPs))
	for _, h := range m.hand {
		views = append(views, m.viewHand(h))
	}
	for _, n := range m.networks {
		for _, s := range n.names {
			views = append(views, m.viewNamed(s))
		}
	}
	slices.SortFunc(views, func(a, b View) int { return cmp.Compare(a.ID, b.ID) })
	return views
}

func (m *Manager) viewHand(h *handService) View {
	return View{
		ID: h.id, Source: SourceHand, Name: h.Name, Affinity: h.Affinity,
		Frontends: []bpf.Frontend{h.Frontend},
		Backends:  m.viewMembers(h.members(), false),
	}
}

func (m *Manager) viewNamed(s *named) View {
	v := View{ID: s.id, Source: cmp.Or(s.source, SourceDocker), Name: s.name, Network: s.net.label()}
	for family, vip := range s.vips {
		if !vip.IsValid() {
			continue
		}
		v.Frontends = append(v.Frontends, bpf.Frontend{Addr: vip})
		v.Backends = append(v.Backends, m.viewMembers(s.backends(family), s.strict())...)
		v.Backends = append(v.Backends, m.viewUndecided(bpf.Frontend{Addr: vip})...)
	}
	m.nameContainers(v.Backends)
	return v
}

// viewUndecided shows the backends that only the maps tell of: without a daemon, all of a container's.
func (m *Manager) viewUndecided(f bpf.Frontend) (views []BackendView) {
	for _, id := range m.undecided(f) {
		var weight uint32
		for _, slot := range m.found[f] {
			if slot == id {
				weight++
			}
		}
		key := m.backends.byID[id].key
		views = append(views, BackendView{
			ID:     id,
			Addr:   netip.AddrPortFrom(key.address(), key.port),
			Weight: min(weight, MaxWeight),
			State:  PhaseUnknown,
			Active: true,
		})
	}
	return views
}

func (m *Manager) viewMembers(members []member, strict bool) []BackendView {
	tier := active(members, strict)
	views := make([]BackendView, len(members))
	for i, b := range members {
		views[i] = BackendView{
			ID:     m.backends.byKey[b.key],
			Addr:   netip.AddrPortFrom(b.key.address(), b.key.port),
			Weight: b.weight,
			State:  b.phase,
			Active: b.phase == tier,
		}
	}
	return views
}

// Published returns the service of every published port, by id. Its name is the port, as in 0.0.0.0:8080/tcp.
func (m *Manager) Published() []View {
	m.mu.RLock()
	defer m.mu.RUnlock()
	views := make([]View, 0, len(m.published))
	for f, p := range m.published {
		v := View{ID: p.id, Name: portText(f), Frontends: []bpf.Frontend{f}, Backends: append(m.viewMembers(m.sharing(f, p), p.strict()), m.viewUndecided(f)...)}
		if first := p.members[0]; first.net != nil {
			v.Network = first.net.label()
		}
		m.nameContainers(v.Backends)
		views = append(views, v)
	}
	slices.SortFunc(views, func(a, b View) int { return cmp.Compare(a.ID, b.ID) })
	return views
}

func (m *Manager) nameContainers(views []BackendView) {
	for i, b := range views {
		if ep := m.byAddr[b.Addr.Addr()]; ep != nil && ep.container != nil {
			views[i].Container = ep.container.Name
		}
	}
}

// ContainerOf is the name of the container that an endpoint belongs to, "" while nobody has told of it.
func (m *Manager) ContainerOf(endpoint string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if ep := m.endpoints[endpoint]; ep != nil && ep.container != nil {
		return ep.container.Name
	}
	return ""
}

// Replica is an endpoint as the service published at f has it, and "" as its state where it is none of its backends.
func (m *Manager) Replica(endpoint string, f bpf.Frontend) BackendView {
	m.mu.RLock()
	defer m.mu.RUnlock()
	ep := m.endpoints[endpoint]
	if ep == nil {
		return BackendView{}
	}
	var v BackendView
	if p := m.published[f]; p != nil {
		for _, b := range m.viewMembers(m.sharing(f, p), p.strict()) {
			if b.Addr.Addr() == ep.addr(familyOf(f.Addr)) {
				v = b
			}
		}
	}
	if ep.container != nil {
		v.Container = ep.container.Name
	}
	return v
}
