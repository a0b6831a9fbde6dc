// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/state"
)

// handService is a hand-made service. Its Spec is normal: weights are 1 to 100, addresses unmapped.
type handService struct {
	id uint32
	Spec
}

// equal reports whether spec would change nothing.
func (h *handService) equal(spec Spec) bool {
	return h.Name == spec.Name && h.Frontend == spec.Frontend && h.Affinity == spec.Affinity &&
		slices.Equal(h.Backends, spec.Backends)
}

// members are the backends as the tiers see them.
func (h *handService) members() []member {
	members := make([]member, len(h.Backends))
	for i, t := range h.Backends {
		members[i] = member{key: keyOf(t.Addr.Addr(), t.Addr.Port(), 0), phase: phaseOf(t), weight: t.Weight}
	}
	return members
}

func phaseOf(t Target) Phase {
	if t.Drain {
		return PhaseDraining
	}
	return PhaseReady
}

// insertHand puts h into the tables, removeHand takes it out; both mark what they change.
func (m *Manager) insertHand(h *handService) {
	m.hand[h.id] = h
	m.byFrontend[h.Frontend] = h
	if h.Name != "" {
		m.byName[h.Name] = h
	}
	ids := append(m.handVIPs[h.Frontend.Addr], h.id)
	slices.Sort(ids)
	m.handVIPs[h.Frontend.Addr] = ids
	m.markHand(h)
}

func (m *Manager) removeHand(h *handService) {
	delete(m.hand, h.id)
	delete(m.ids, h.id)
	delete(m.byFrontend, h.Frontend)
	if m.byName[h.Name] == h {
		delete(m.byName, h.Name)
	}
	ids := slices.DeleteFunc(m.handVIPs[h.Frontend.Addr], func(id uint32) bool { return id == h.id })
	m.handVIPs[h.Frontend.Addr] = ids
	if len(ids) == 0 {
		delete(m.handVIPs, h.Frontend.Addr)
	}
	m.markHand(h)
}

func (m *Manager) markHand(h *handService) {
	m.mark(h.Frontend)
	m.mark(h.Frontend.Head())
}

// Add makes a hand-made service, which lasts until [Manager.Remove] or [Manager.Apply]. A frontend or a
// name that another service has is an error. If only the maps could not be written, the service is kept
// and Add returns it along with the error; [Manager.Reconcile] tries again.
func (m *Manager) Add(spec Spec) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	spec, err := m.normal(spec, nil)
	if err != nil {
		return View{}, err
	}
	if err := m.checkFree(spec); err != nil {
		return View{}, err
	}
	h := &handService{id: m.newID(spec.Frontend), Spec: spec}
	err = m.commit(len(spec.Backends), func(tx state.Tx) error {
		return tx.Put(bucketHand, handKey(h.id), handRecord{h.id, h.Spec})
	})
	if err != nil {
		delete(m.ids, h.id)
		return View{}, err
	}
	m.insertHand(h)
	err = m.finish(nil)
	return m.viewHand(h), err
}

// Remove removes the hand-made service that ref names: an id, a name, "ADDR:PORT", "[ADDR]:PORT", a
// bare address, each address also with "tcp:", "udp:" or "any:" before it. It returns [ErrNotFound] if
// there is none, and an error that names the choices if there are several.
func (m *Manager) Remove(ref string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.find(ref)
	if err != nil {
		return err
	}
	err = m.commit(0, func(tx state.Tx) error { return tx.Delete(bucketHand, handKey(h.id)) })
	if err != nil {
		return err
	}
	m.removeHand(h)
	return m.finish(nil)
}

// goesWithNetwork refuses to change by hand what a source tells of.
func goesWithNetwork(ref string, s *named) error {
	return conflictf("service %s (%s) comes from %s: it goes with its network %s", ref, s.name, cmp.Or(s.source, SourceDocker), s.net.label())
}

// find looks a hand-made service up.
func (m *Manager) find(ref string) (*handService, error) {
	if id, err := strconv.ParseUint(ref, 10, 32); err == nil {
		if h := m.hand[uint32(id)]; h != nil {
			return h, nil
		}
		if s := m.namedByID(uint32(id)); s != nil {
			return nil, goesWithNetwork(ref, s)
		}
		return nil, fmt.Errorf("service %s: %w: `mustang svc ls` lists the ids", ref, ErrNotFound)
	}
	if h := m.byName[ref]; h != nil {
		return h, nil
	}
	f, exact, err := parseFrontend(ref)
	if err != nil {
		if s := m.namedByName(ref); s != nil {
			return nil, goesWithNetwork(strconv.FormatUint(uint64(s.id), 10), s)
		}
		return nil, fmt.Errorf("service %q: %w: give its id, name or ADDR:PORT", ref, ErrNotFound)
	}
	if s := m.nameVIPs[f.Addr]; s != nil {
		return nil, goesWithNetwork(ref, s)
	}
	var hits []*handService
	for _, p := range []bpf.Protocol{bpf.ProtocolAny, bpf.ProtocolTCP, bpf.ProtocolUDP} {
		h := m.byFrontend[bpf.Frontend{Addr: f.Addr, Port: f.Port, Protocol: p}]
		if h != nil && (!exact || p == f.Protocol) {
			hits = append(hits, h)
		}
	}
	switch len(hits) {
	case 0:
		return nil, fmt.Errorf("service %s: %w: `mustang svc ls` lists them", ref, ErrNotFound)
	case 1:
		return hits[0], nil
	}
	return nil, invalidf("service %s is ambiguous: name the protocol, %s or %s", ref, text(hits[0].Frontend), text(hits[1].Frontend))
}

// Apply makes the hand-made services equal to specs, in one transaction: if any spec is wrong or the
// store fails, nothing changes. Services are told apart by their frontend and keep their id. As with
// Add, an error of the maps alone comes with the counts of what was stored.
func (m *Manager) Apply(specs []Spec) (added, changed, removed, unchanged int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted, err := m.normalSet(specs)
	if err != nil {
		return 0, 0, 0, 0, err
	}
	var fresh []*handService
	backends := 0
	for _, spec := range wanted {
		switch old := m.byFrontend[spec.Frontend]; {
		case old == nil:
			fresh = append(fresh, &handService{id: m.newID(spec.Frontend), Spec: spec})
			added++
		case old.equal(spec):
			unchanged++
			continue
		default:
			fresh = append(fresh, &handService{id: old.id, Spec: spec})
			changed++
		}
		backends += len(spec.Backends)
	}
	stale := m.missingFrom(wanted)
	removed = len(stale)
	if err := m.commit(backends, saveHand(fresh, stale)); err != nil {
		for _, h := range fresh {
			if m.hand[h.id] == nil {
				delete(m.ids, h.id)
			}
		}
		return 0, 0, 0, 0, err
	}
	for _, h := range stale {
		m.removeHand(h)
	}
	m.replaceHand(fresh)
	return added, changed, removed, unchanged, m.finish(nil)
}

// replaceHand puts services in, in place of those that had their ids. All of the old go first: a name
// may move from one to another.
func (m *Manager) replaceHand(fresh []*handService) {
	for _, h := range fresh {
		if old := m.hand[h.id]; old != nil {
			m.removeHand(old)
		}
	}
	for _, h := range fresh {
		m.useID(h.id)
		m.insertHand(h)
	}
}

// missingFrom lists the services that no spec wants any more.
func (m *Manager) missingFrom(specs []Spec) (stale []*handService) {
	wanted := make(map[bpf.Frontend]struct{}, len(specs))
	for _, s := range specs {
		wanted[s.Frontend] = struct{}{}
	}
	for f, h := range m.byFrontend {
		if _, ok := wanted[f]; !ok {
			stale = append(stale, h)
		}
	}
	return stale
}

// saveHand writes and deletes the records of hand-made services; nil if there is nothing to do.
func saveHand(fresh, stale []*handService) func(state.Tx) error {
	if len(fresh)+len(stale) == 0 {
		return nil
	}
	return func(tx state.Tx) error {
		for _, h := range fresh {
			if err := tx.Put(bucketHand, handKey(h.id), handRecord{h.id, h.Spec}); err != nil {
				return err
			}
		}
		for _, h := range stale {
			if err := tx.Delete(bucketHand, handKey(h.id)); err != nil {
				return err
			}
		}
		return nil
	}
}

// ParseFrontend reads "ADDR:PORT", "[ADDR]:PORT" or a bare address, which means every port, with or
// without "tcp:", "udp:" or "any:" before it; without one it means every protocol.
func ParseFrontend(s string) (bpf.Frontend, error) {
	f, _, err := parseFrontend(s)
	return f, err
}

// parseFrontend also reports whether a protocol was named.
func parseFrontend(s string) (f bpf.Frontend, exact bool, err error) {
	rest := s
	if head, tail, ok := strings.Cut(s, ":"); ok && head != "" {
		if p, err := bpf.ParseProtocol(head); err == nil {
			f.Protocol, rest, exact = p, tail, true
		}
	}
	addr, err := ParseTarget(rest)
	if err != nil {
		return bpf.Frontend{}, false, fmt.Errorf("frontend %q: %w", s, err)
	}
	f.Addr, f.Port = addr.Addr(), addr.Port()
	return f, exact, nil
}

// ParseTarget reads "ADDR:PORT", "[ADDR]:PORT" or a bare address, which has port 0.
func ParseTarget(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address: use ADDR:PORT, or [ADDR]:PORT for IPv6", s)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// text writes a frontend as people give it, such as tcp:10.96.0.100:80.
func text(f bpf.Frontend) string {
	s := f.Addr.String()
	if f.Port != 0 {
		s = netip.AddrPortFrom(f.Addr, f.Port).String()
	}
	if f.Protocol == bpf.ProtocolAny {
		return s
	}
	return strings.ToLower(f.Protocol.String()) + ":" + s
}
