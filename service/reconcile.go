// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/mustang-net/mustang/bpf"
)

// applied is what the maps hold for a frontend, as far as is known.
type applied struct {
	digest   uint64   // of the entry; 0 means it must be written
	held     bpf.Held // wrong where it must be written
	backends []uint32 // held for it: those in its slots and those that only keep their flows
}

var seed = maphash.MakeSeed()

// digest stands for the content of an entry, so that 10,000 of them need not be kept twice.
func digest(s bpf.Service) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	var b [4]byte
	flags := uint32(0)
	if s.Published {
		flags |= 1
	}
	if s.Sources != nil {
		flags |= 2
	}
	for _, v := range []uint32{s.ID, s.Network, s.Affinity, flags} {
		binary.NativeEndian.PutUint32(b[:], v)
		h.Write(b[:])
	}
	for _, v := range slices.Concat(s.Slots, []uint32{0}, s.Reserve) { // ids begin at 1
		binary.NativeEndian.PutUint32(b[:], v)
		h.Write(b[:])
	}
	for _, p := range s.Sources { // sorted, here and in the maps
		b, _ := p.MarshalBinary() // has no error to give
		h.Write(b)
	}
	return max(h.Sum64(), 1)
}

// observe reads the maps into the tables and returns the services found.
func (m *Manager) observe() ([]bpf.Service, error) {
	services, err := m.maps.Services()
	if err != nil {
		return nil, fmt.Errorf("read the services from the maps: %w", err)
	}
	backends, err := m.maps.Backends()
	if err != nil {
		return nil, fmt.Errorf("read the backends from the maps: %w", err)
	}
	m.backends.observe(backends)
	before := m.applied
	m.applied = make(map[bpf.Frontend]applied, len(services))
	for _, s := range services {
		a := applied{digest: digest(s), held: s.Held(), backends: unique(slices.Concat(s.Slots, s.Reserve))}
		for _, id := range a.backends {
			if !m.backends.byID[id].written {
				a.digest = 0 // a slot leads nowhere, or to something we did not mean
			}
		}
		a.backends = unique(append(a.backends, before[s.Frontend].backends...))
		m.backends.hold(a.backends)
		m.applied[s.Frontend] = a
	}
	return services, nil
}

// markAll marks every frontend that is wanted and, once in sync, every one that the maps hold.
func (m *Manager) markAll() {
	for f := range m.byFrontend {
		m.mark(f)
		m.mark(f.Head())
	}
	for vip := range m.nameVIPs {
		m.mark(bpf.Frontend{Addr: vip})
	}
	for f := range m.published {
		m.mark(f)
	}
	if !m.synced {
		return
	}
	for f := range m.applied {
		m.mark(f)
	}
	m.backends.orphanAll()
}

func (m *Manager) mark(f bpf.Frontend) { m.dirty[f] = struct{}{} }

// plan is an entry to write, with the backends held for it.
type plan struct {
	service  bpf.Service
	digest   uint64
	backends []uint32
}

// bulk is how many entries are written or removed in one call: enough for that call to cost little, and few enough
// for what it takes to be little.
const bulk = 256

// flush makes the entries of the marked frontends as wanted. New backends come first and orphans go
// last, so that at no moment a slot leads to a missing backend; what fails stays marked.
func (m *Manager) flush() error {
	var fails failures
	plans, gone := m.plan()
	m.dirty = map[bpf.Frontend]struct{}{} // cleared, it would stay as large as it was
	missing := m.writeBackends(plans, &fails)
	plans = slices.DeleteFunc(plans, func(p plan) bool { return m.stands(p, missing) })
	for some := range slices.Chunk(plans, bulk) {
		m.writeServices(some, &fails)
	}
	for some := range slices.Chunk(gone, bulk) {
		m.deleteServices(some, &fails)
	}
	if b, ok := m.maps.(Batch); ok { // before backends go that it may still lead to
		if err := b.Flush(); err != nil {
			fails.add(err)
		}
	}
	m.deleteOrphans(&fails)
	return fails.err()
}

// plan splits the marked frontends into entries to write and entries to remove.
func (m *Manager) plan() (plans []plan, gone []bpf.Frontend) {
	for f := range m.dirty {
		want, ok := m.desired(f)
		if !ok {
			if _, there := m.applied[f]; there {
				gone = append(gone, f)
			}
			continue
		}
		if plans == nil {
			plans = make([]plan, 0, len(m.dirty))
		}
		plans = append(plans, m.number(want))
	}
	slices.SortFunc(plans, func(a, b plan) int { return headsLast(a.service.Frontend, b.service.Frontend) })
	slices.SortFunc(gone, headsLast)
	return plans, gone
}

// headsLast orders entries so that the head, which makes an address a VIP, comes after its ports and
// goes after them: a new VIP refuses nothing that it will serve, and one that goes never leaks.
func headsLast(a, b bpf.Frontend) int {
	switch {
	case (a == a.Head()) == (b == b.Head()):
		return 0
	case a == a.Head():
		return 1
	}
	return -1
}

// number turns members into ids and slots.
func (m *Manager) number(w desired) plan {
	p := plan{service: w.service, backends: make([]uint32, len(w.members))}
	for i, b := range w.members {
		p.backends[i] = m.backends.acquire(b.key)
	}
	phase := active(w.members, w.strict)
	p.service.Slots = slots(w.members, p.backends, phase)
	p.service.Reserve = reserve(w.members, p.backends, phase, w.strict)
	if keep := m.undecided(w.service.Frontend); len(keep) > 0 {
		m.backends.hold(keep)
		p.backends = append(p.backends, keep...)
		p.service.Slots = append(p.service.Slots, keep...)
		slices.Sort(p.service.Slots)
		was := m.found[w.service.Frontend]
		if slices.Equal(unique(p.service.Slots), unique(was)) {
			p.service.Slots = was
		}
	}
	p.digest = digest(p.service)
	return p
}

// undecided are the backends that the maps gave a frontend at start and no source has told of yet:
// they go on until one does.
func (m *Manager) undecided(f bpf.Frontend) (keep []uint32) {
	for _, id := range unique(m.found[f]) {
		e, ok := m.backends.byID[id]
		if !ok || !e.written {
			continue
		}
		ep := m.byAddr[e.key.address()]
		if ep == nil || ep.container == nil && ep.gone.IsZero() && (ep.Cookie == 0 || ep.Cookie == e.key.cookie) {
			keep = append(keep, id)
		}
	}
	return keep
}

// writeBackends writes the backends that the maps lack and returns those it could not.
func (m *Manager) writeBackends(plans []plan, fails *failures) map[uint32]bool {
	var missing map[uint32]bool
	for _, p := range plans {
		for _, id := range p.backends {
			e := m.backends.byID[id]
			if e.written || missing[id] {
				continue
			}
			if err := m.maps.PutBackend(e.key.backend(id)); err != nil {
				fails.add(fmt.Errorf("write backend %d (%s) to the maps: %w", id, e.key.address(), err))
				if missing == nil {
					missing = map[uint32]bool{}
				}
				missing[id] = true
				continue
			}
			m.backends.setWritten(id, true)
		}
	}
	return missing
}

// stands reports whether an entry is not to be written: it is there already, or cannot lead to a backend that
// the maps lack.
func (m *Manager) stands(p plan, missing map[uint32]bool) bool {
	f := p.service.Frontend
	if slices.ContainsFunc(p.backends, func(id uint32) bool { return missing[id] }) {
		m.backends.release(p.backends)
		m.mark(f)
		return true
	}
	was := m.applied[f]
	if was.digest != p.digest {
		return false
	}
	m.backends.release(was.backends)
	m.applied[f] = applied{p.digest, p.service.Held(), p.backends}
	return true
}

// writeServices writes entries. One that could not be written may hold its old or its new slots, so the backends
// of both stay held.
func (m *Manager) writeServices(plans []plan, fails *failures) {
	done := m.putServices(plans)
	for _, p := range plans {
		f := p.service.Frontend
		was := m.applied[f]
		if !done {
			if err := m.maps.PutService(p.service); err != nil {
				fails.add(fmt.Errorf("write service %s to the maps: %w", text(f), err))
				m.applied[f] = applied{0, was.held, append(was.backends, p.backends...)}
				m.mark(f)
				continue
			}
		}
		m.backends.release(was.backends)
		m.applied[f] = applied{p.digest, p.service.Held(), p.backends}
	}
}

// putServices writes many entries at once, and reports whether all are written.
func (m *Manager) putServices(plans []plan) bool {
	maps, ok := m.maps.(Bulk)
	if !ok || len(plans) < 2 {
		return false
	}
	services, frontends := make([]bpf.Service, len(plans)), make([]bpf.Frontend, len(plans))
	for i, p := range plans {
		services[i], frontends[i] = p.service, p.service.Frontend
	}
	held, known := m.held(frontends)
	return known && maps.PutServices(services, held) == nil
}

// held is what the maps hold at frontends, if it is known.
func (m *Manager) held(frontends []bpf.Frontend) ([]bpf.Held, bool) {
	out := make([]bpf.Held, len(frontends))
	for i, f := range frontends {
		a, there := m.applied[f]
		if there && a.digest == 0 {
			return nil, false
		}
		out[i] = a.held
	}
	return out, true
}

func (m *Manager) deleteServices(gone []bpf.Frontend, fails *failures) {
	done := false
	if maps, ok := m.maps.(Bulk); ok && len(gone) > 1 {
		held, known := m.held(gone)
		done = known && maps.DeleteServices(gone, held) == nil
	}
	for _, f := range gone {
		if !done {
			if err := m.maps.DeleteService(f); err != nil {
				fails.add(fmt.Errorf("remove service %s from the maps: %w", text(f), err))
				m.mark(f)
				continue
			}
		}
		m.backends.release(m.applied[f].backends)
		delete(m.applied, f)
	}
}

// deleteOrphans removes the backends that no entry needs any more.
func (m *Manager) deleteOrphans(fails *failures) {
	orphans := m.backends.orphans
	m.backends.orphans = nil
	for _, id := range orphans {
		e, ok := m.backends.byID[id]
		if !ok || e.refs > 0 {
			continue
		}
		if e.written {
			if err := m.maps.DeleteBackend(id); err != nil {
				fails.add(fmt.Errorf("remove backend %d (%s) from the maps: %w", id, e.key.address(), err))
				m.backends.orphans = append(m.backends.orphans, id)
				continue
			}
		}
		m.backends.forget(id)
	}
}

// failures keeps the first of many errors, which tend to be the same.
type failures struct {
	first error
	more  int
}

func (f *failures) add(err error) {
	if f.first != nil {
		f.more++
		return
	}
	f.first = err
}

func (f *failures) err() error {
	if f.more > 0 {
		return fmt.Errorf("%w (and %d more)", f.first, f.more)
	}
	return f.first
}

// unique returns the ids sorted, each once, in a slice of its own.
func unique(ids []uint32) []uint32 {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return slices.Compact(ids)
}
