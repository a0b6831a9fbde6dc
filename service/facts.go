// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mustang-net/mustang/state"
)

// endpoint is what is known of a container's attachment.
type endpoint struct {
	Endpoint
	net       *network   // nil while unknown
	container *container // nil until its facts came
	expected  *container // who it will be, told before those
	joining   []string   // networks that its container is being started on
	gone      time.Time  // when Gone was told; zero while alive
	options   options
	warned    string   // what the log was told of its options
	denied    bool     // of a port, as the log was told
	names     []*named // whose member it is
	settled   portFacts
}

func (ep *endpoint) addr(family int) netip.Addr {
	if family == family4 {
		return ep.IPv4
	}
	return ep.IPv6
}

// phase is the container's, as far as a drain by the user does not make it worse.
func (ep *endpoint) phase() Phase {
	c := ep.container
	switch {
	case c == nil || !ep.gone.IsZero():
		return PhaseStopped
	case c.drained && (c.Phase == PhaseReady || c.Phase == PhaseStarting):
		return PhaseDraining
	}
	return c.Phase
}

// alive reports whether the container runs, be it paused or unwell.
func (ep *endpoint) alive() bool {
	switch ep.phase() {
	case PhaseReady, PhaseStarting, PhaseDraining, PhaseUnhealthy, PhasePaused:
		return true
	}
	return false
}

// container is what an engine told of a container.
type container struct {
	Container
	drained bool
}

// PutEndpoint takes over what a driver knows of an endpoint; putting it again changes what differs and
// ends [Manager.Gone]. An address that is a VIP, or lies in a block of VIPs, is refused.
func (m *Manager) PutEndpoint(e Endpoint) error {
	if e.ID == "" {
		return invalidf("endpoint without an id: the driver must give one")
	}
	e.IPv4, e.IPv6 = e.IPv4.Unmap(), e.IPv6.Unmap()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if err := m.checkEndpointAddr(a); err != nil {
			return fmt.Errorf("endpoint %s: %w", e.ID, err)
		}
	}
	if err := m.checkPorts(e); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.ID, err)
	}
	ep := m.endpoints[e.ID]
	if ep == nil {
		ep = &endpoint{container: m.byEndpoint[e.ID]}
		m.endpoints[e.ID] = ep
	} else {
		m.unindex(ep)
	}
	ep.Endpoint = e
	ep.gone = time.Time{}
	m.index(ep)
	m.settle(ep)
	return m.finish(m.commit(e.backends(), nil))
}

func (m *Manager) checkEndpointAddr(a netip.Addr) error {
	if !a.IsValid() {
		return nil
	}
	if m.handVIPs[a] != nil {
		return conflictf("address %s is the VIP of a hand-made service: give the endpoint another, or remove the service", a)
	}
	for _, n := range m.networks {
		if n.blocks[familyOf(a)].Contains(a) {
			return conflictf("address %s lies in %s, the VIPs of network %s: choose another subnet", a, n.blocks[familyOf(a)], n.label())
		}
	}
	return nil
}

// index makes ep findable by its address, sandbox and network; unindex undoes it.
func (m *Manager) index(ep *endpoint) {
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if a.IsValid() {
			m.byAddr[a] = ep
		}
	}
	if ep.Cookie != 0 {
		m.byCookie[ep.Cookie] = append(m.byCookie[ep.Cookie], ep)
	}
	if ep.net = m.networks[ep.Network]; ep.net != nil {
		ep.net.endpoints[ep.ID] = ep
	}
	m.publish(ep)
}

func (m *Manager) unindex(ep *endpoint) {
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if m.byAddr[a] == ep {
			delete(m.byAddr, a)
		}
	}
	left := slices.DeleteFunc(m.byCookie[ep.Cookie], func(other *endpoint) bool { return other == ep })
	if m.byCookie[ep.Cookie] = left; len(left) == 0 {
		delete(m.byCookie, ep.Cookie)
	}
	if ep.net != nil {
		delete(ep.net.endpoints, ep.ID)
	}
	m.unpublish(ep)
}

// RemoveEndpoint forgets an endpoint, which is out of every service when RemoveEndpoint returns. One
// that is not known is no error.
func (m *Manager) RemoveEndpoint(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ep := m.endpoints[id]
	if ep == nil {
		return nil
	}
	m.unindex(ep)
	delete(m.endpoints, id)
	ep.net, ep.container = nil, nil
	m.settle(ep)
	m.strike(ep)
	return m.finish(m.commit(0, nil))
}

// Gone is the first sign of an endpoint's death, whichever it is: its process exited, or the engine
// called Leave or Revoke. The endpoint is out of every service, in the maps too, when Gone returns. Facts
// that were read before the death may still come and do not bring it back: only [Manager.PutEndpoint] or
// a container that has started since does.
func (m *Manager) Gone(endpointID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ep := m.endpoints[endpointID]
	if ep == nil {
		return
	}
	told := !ep.gone.IsZero()
	ep.gone = m.now()
	if told {
		return
	}
	m.settle(ep)
	m.strike(ep)
	err := m.flush() // before anything that waits for a disk
	m.warn(m.finish(errors.Join(err, m.commit(0, nil))))
}

// strike takes a dead endpoint out of what was found in the maps at start.
func (m *Manager) strike(ep *endpoint) {
	for f, ids := range m.found {
		left := slices.DeleteFunc(slices.Clone(ids), func(id uint32) bool {
			a := m.backends.byID[id].key.address()
			return a == ep.IPv4 || a == ep.IPv6
		})
		if len(left) != len(ids) {
			m.found[f] = left
			m.mark(f)
		}
	}
}

// PutContainer takes over what an engine tells of a container, in place of what it told before.
func (m *Manager) PutContainer(facts Container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.containers[facts.ID]
	c := &container{Container: facts, drained: m.drained[facts.ID]}
	m.containers[facts.ID] = c
	for id := range facts.Aliases {
		m.byEndpoint[id] = c
		ep := m.endpoints[id]
		if ep == nil {
			continue
		}
		ep.container, ep.expected, ep.joining = c, nil, nil
		if !ep.gone.IsZero() && facts.Started.After(ep.gone) {
			ep.gone = time.Time{}
		}
		m.settle(ep)
	}
	if old != nil {
		m.detach(old, facts.Aliases)
	}
	m.warn(m.finish(m.commit(0, nil)))
}

// Expect tells whose endpoints are, by endpoint id, before an engine tells of those containers as running. It counts
// for who may share a port, and only for endpoints of which nothing better is known.
//
// Networks are the ids of those that such a container is on, or will be: an engine joins them one by one.
func (m *Manager) Expect(facts map[string]Container, networks map[string][]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, on := range networks {
		if ep := m.endpoints[id]; ep != nil && ep.container == nil {
			ep.joining = on
		}
	}
	for id, c := range facts {
		if ep := m.endpoints[id]; ep != nil && ep.container == nil {
			ep.expected = &container{Container: c}
		}
	}
}

// Known tells whether it is known whose an endpoint is.
func (m *Manager) Known(endpointID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	ep := m.endpoints[endpointID]
	return ep != nil && (ep.container != nil || ep.expected != nil)
}

// Joining tells whether the endpoint's container, which is being started, is expected on a network.
func (m *Manager) Joining(endpointID, networkID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	ep := m.endpoints[endpointID]
	return ep != nil && slices.Contains(ep.joining, networkID)
}

// detach ends the hold of old facts on endpoints that are not in keep.
func (m *Manager) detach(old *container, keep map[string][]string) {
	for id := range old.Aliases {
		if _, ok := keep[id]; ok || m.byEndpoint[id] != old {
			continue
		}
		delete(m.byEndpoint, id)
		if ep := m.endpoints[id]; ep != nil && ep.container == old {
			ep.container = nil
			m.settle(ep)
			m.strike(ep)
		}
	}
}

// RemoveContainer forgets a container and a drain of it. One that is not known is no error.
func (m *Manager) RemoveContainer(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.containers[id]; old != nil {
		m.detach(old, nil)
		delete(m.containers, id)
	}
	var forget func(state.Tx) error
	if m.drained[id] {
		delete(m.drained, id)
		forget = func(tx state.Tx) error { return tx.Delete(bucketDrained, id) }
	}
	m.warn(m.finish(m.commit(0, forget)))
}

// warn logs an error that no caller hears of.
func (m *Manager) warn(err error) {
	if err != nil {
		m.log.WithError(err).Error("services: will be tried again")
	}
}
