// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mustang-net/mustang/state"
)

// minIDPrefix is the shortest part of a container's id that names it.
const minIDPrefix = 4

// Drain takes backends out of new flows while others can take them, and leaves the flows they have; undo
// brings them back. ref is "ADDR" or "ADDR:PORT" of hand-made backends or of a container, or a container's
// name, id, or unique start of its id. The drain lasts until undone, or until the container is removed.
// It returns [ErrNotFound] if ref names nothing. The backends of containers need a source that tells of them.
func (m *Manager) Drain(ref string, undo bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var fresh []*handService
	var drained []*container
	if addr, err := ParseTarget(ref); err == nil {
		fresh = m.drainHand(addr, undo)
		if ep := m.byAddr[addr.Addr()]; ep != nil && ep.container != nil {
			drained = append(drained, ep.container)
		} else if len(fresh) == 0 && !m.hasTarget(addr) {
			if m.unheard(addr.Addr()) {
				return unavailable{fmt.Errorf("backend %s is a container's backend: that needs the daemon: start it with `mustang daemon`, "+
					"or wait until it has heard of the container", ref)}
			}
			return fmt.Errorf("backend %s: %w: `mustang svc ls` lists them", ref, ErrNotFound)
		}
	} else {
		c, err := m.findContainer(ref)
		if err != nil {
			return err
		}
		drained = append(drained, c)
	}
	if err := m.commit(0, saveDrain(fresh, drained, undo)); err != nil {
		return err
	}
	m.replaceHand(fresh)
	for _, c := range drained {
		m.setDrained(c, undo)
	}
	return m.finish(nil)
}

// drainHand returns the hand-made services that a drain of addr changes, as they should be.
func (m *Manager) drainHand(addr netip.AddrPort, undo bool) (fresh []*handService) {
	for _, h := range m.hand {
		next := &handService{id: h.id, Spec: h.Spec}
		next.Backends = slices.Clone(h.Backends)
		for i, t := range next.Backends {
			if matches(h, t, addr) {
				next.Backends[i].Drain = !undo
			}
		}
		if !slices.Equal(next.Backends, h.Backends) {
			fresh = append(fresh, next)
		}
	}
	return fresh
}

// hasTarget reports whether a hand-made service has a backend at addr.
func (m *Manager) hasTarget(addr netip.AddrPort) bool {
	for _, h := range m.hand {
		if slices.ContainsFunc(h.Backends, func(t Target) bool { return matches(h, t, addr) }) {
			return true
		}
	}
	return false
}

// unheard reports whether addr is a container's of which no source has told: a drain is kept by
// container, and so cannot be.
func (m *Manager) unheard(addr netip.Addr) bool {
	if ep := m.byAddr[addr]; ep != nil {
		return ep.unread()
	}
	for f := range m.found {
		for _, id := range m.undecided(f) {
			if m.backends.byID[id].key.address() == addr {
				return true
			}
		}
	}
	return false
}

// matches reports whether addr, whose port 0 means any, is where a backend of h receives.
func matches(h *handService, t Target, addr netip.AddrPort) bool {
	port := t.Addr.Port()
	if port == 0 {
		port = h.Frontend.Port
	}
	return t.Addr.Addr() == addr.Addr() && (addr.Port() == 0 || port == 0 || addr.Port() == port)
}

func (m *Manager) findContainer(ref string) (*container, error) {
	var hits []*container
	for id, c := range m.containers {
		if id == ref || c.Name == ref {
			return c, nil
		}
		if len(ref) >= minIDPrefix && strings.HasPrefix(id, ref) {
			hits = append(hits, c)
		}
	}
	switch len(hits) {
	case 0:
		if !m.synced {
			return nil, fmt.Errorf("container %s: %w: containers are known to the daemon alone: start it with `mustang daemon`, "+
				"or give the ADDR[:PORT] of a hand-made backend", ref, ErrNotFound)
		}
		return nil, fmt.Errorf("container %s: %w: give a backend's ADDR[:PORT], or a container's name or id", ref, ErrNotFound)
	case 1:
		return hits[0], nil
	}
	return nil, invalidf("container %s is ambiguous: %d ids start so: give more of it", ref, len(hits))
}

func (m *Manager) setDrained(c *container, undo bool) {
	c.drained = !undo
	if undo {
		delete(m.drained, c.ID)
	} else {
		m.drained[c.ID] = true
	}
	for id := range c.Aliases {
		if ep := m.endpoints[id]; ep != nil {
			m.settle(ep)
		}
	}
}

func saveDrain(fresh []*handService, drained []*container, undo bool) func(state.Tx) error {
	return func(tx state.Tx) error {
		for _, h := range fresh {
			if err := tx.Put(bucketHand, handKey(h.id), handRecord{h.id, h.Spec}); err != nil {
				return err
			}
		}
		for _, c := range drained {
			var err error
			if undo {
				err = tx.Delete(bucketDrained, c.ID)
			} else {
				err = tx.Put(bucketDrained, c.ID, true)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}
