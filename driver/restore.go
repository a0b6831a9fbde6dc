// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// Restore makes the kernel agree with the state, after a start or whenever somebody else has changed it: what is missing is made again, running
// endpoints get this build's programs without losing a packet, and what nobody knows is removed, unless the
// state was lost ([Manager.Orphaned]).
// It goes on past errors and returns them all.
func (m *Manager) Restore() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	// what the datapath was told before, somebody may have changed
	m.uplinks, m.hostAddrs = map[string]bpf.Uplink{}, map[netip.Addr]bool{}
	var errs []error
	for _, p := range m.pools {
		errs = append(errs, m.links.Refuse(p))
	}
	now, blind := m.lookOutside(m.uplinkNames)
	if blind == nil {
		errs = append(errs, m.syncUplinks(now))
	}
	errs = append(errs, blind)
	if m.anyOff() { // before anything else is made: the tables are never less than all
		errs = append(errs, m.setEnds())
	}
	for _, n := range m.networks {
		if n.Partial && blind != nil {
			continue // its parent may lead out
		} else if n.Partial {
			errs = append(errs, m.removeNetwork(n))
		} else {
			errs = append(errs, m.setUpNetwork(n))
		}
	}
	for _, e := range m.endpoints {
		if err := m.restoreEndpoint(e); err != nil {
			errs = append(errs, fmt.Errorf("restore the endpoint %s: %w", e.ID, err))
		}
	}
	err := m.findOrphans()
	switch {
	case err != nil || blind != nil: // nobody knows what may go
		errs = append(errs, err)
	case m.orphaned:
		errs = append(errs, m.tellOfOrphans())
	default:
		errs = append(errs, m.prune())
	}
	return errors.Join(errs...)
}

// Recall takes over what another process has made since the host has booted, for one that makes a change or two: what
// leads out, the host's addresses, and for the services the endpoints of CNI. Nothing in the kernel is made anew.
func (m *Manager) Recall() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	known, err := m.datapath.Uplinks()
	if err != nil {
		return err
	}
	for _, u := range known {
		if name, err := m.links.Name(u.IfIndex); err == nil { // or it is gone
			m.uplinks[name] = u
		}
	}
	entries, err := m.datapath.Endpoints()
	for _, e := range entries {
		if e.Host {
			m.hostAddrs[e.Addr] = true
		}
	}
	if err := m.findOrphans(); err != nil {
		m.log.WithError(err).Warn("go on as if there were some") // who would be in their way looks again
	}
	errs := []error{err}
	for _, e := range m.endpoints {
		if e.Source == SourceCNI && !e.Partial {
			errs = append(errs, m.services.PutEndpoint(m.service(e)))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) restoreEndpoint(e *Endpoint) error {
	n := m.networks[e.NetworkID]
	if e.Partial || e.Source != SourceHand && n == nil {
		return m.tearDownEndpoint(e)
	}
	if e.Source == SourceHand {
		return m.restoreByHand(e)
	}
	index, mac := e.Index, e.HostMAC
	if err := m.setUpEndpoint(n, e); err != nil {
		return err
	}
	if e.Index != index || e.HostMAC != mac {
		if err := m.put(bucketEndpoints, e.ID, e); err != nil {
			return err
		}
	}
	if err := m.holdAgain(e); err != nil {
		m.log.WithError(err).WithField("endpoint", e.ID).Warn("keep published ports from others")
	}
	if e.Sandbox == "" {
		return nil
	}
	cookie, err := m.links.Cookie(e.Sandbox)
	switch {
	case err == nil && (e.Cookie == 0 || cookie == e.Cookie):
		return m.enter(n, e, cookie)
	case err != nil && !errors.Is(err, link.ErrNoNetns):
		return err // it may well be alive
	case e.Cookie == 0:
		m.await(e.ID, e.Sandbox)
		return nil
	default: // it ended while nobody looked
		m.services.Gone(e.ID)
		return m.leave(e)
	}
}

// restoreByHand looks at the endpoint again: its sandbox, its device and its address must be what they were,
// which after a reboot a cookie alone does not tell.
func (m *Manager) restoreByHand(e *Endpoint) error {
	now, err := m.inspect(e.IfName, e.Sandbox)
	if errors.Is(err, link.ErrNoNetns) || errors.Is(err, link.ErrNoDevice) || errors.Is(err, errNoAddress) {
		return m.tearDownEndpoint(e)
	}
	if err != nil {
		return err
	}
	if now.Cookie != e.Cookie || now.ID != e.ID {
		return m.tearDownEndpoint(e)
	}
	if *now.identity() != *e.identity() {
		if err := m.tearDownEndpoint(e); err != nil {
			return err
		}
		return m.recordByHand(now)
	}
	return m.setUpByHand(e)
}

// prune removes what carries our mark and no record explains.
func (m *Manager) prune() error {
	return errors.Join(m.pruneDevices(), m.pruneMaps(), m.pruneRoutes(), m.setEnds())
}

func (m *Manager) pruneDevices() error {
	owned, err := m.links.Owned()
	if err != nil {
		return err
	}
	guarded := map[string]bool{}
	for _, e := range m.endpoints {
		guarded[e.guarded()] = true
	}
	for _, n := range m.networks {
		for _, g := range m.mode(n).guards(n) {
			guarded[g.name] = !n.Off()
		}
	}
	for name := range m.uplinks {
		guarded[name] = true
	}
	var errs []error
	for name, owner := range owned {
		if m.endpoints[owner] == nil && m.networks[owner] == nil {
			errs = append(errs, m.links.Delete(name, owner), m.datapath.DetachLXC(name))
		}
	}
	attached, err := m.datapath.AttachedLXC()
	for _, name := range attached {
		if !guarded[name] {
			errs = append(errs, m.datapath.DetachLXC(name))
		}
	}
	return errors.Join(append(errs, err)...)
}

func (m *Manager) pruneMaps() error {
	host, err := m.links.Cookie("")
	if err != nil {
		return err
	}
	addrs, indexes, cookies := maps.Clone(m.hostAddrs), map[int]bool{}, map[uint64]bool{host: true}
	members := map[[2]uint64]bool{}
	for _, e := range m.endpoints {
		for _, a := range e.addrs() {
			addrs[a] = true
		}
		indexes[e.Index], cookies[e.Cookie] = true, true
		if n := m.networks[e.NetworkID]; n != nil {
			members[[2]uint64{e.Cookie, uint64(n.Number)}] = true
		}
	}
	for _, n := range m.networks {
		for _, g := range m.mode(n).guards(n) {
			if dev, err := m.links.Find(g.name); err == nil {
				indexes[dev.Index] = true
			}
		}
	}
	endpoints, err1 := m.datapath.Endpoints()
	interfaces, err2 := m.datapath.Interfaces()
	sandboxes, err3 := m.datapath.Sandboxes()
	errs := []error{err1, err2, err3}
	for _, e := range endpoints {
		if !addrs[e.Addr] {
			if e.Host {
				errs = append(errs, m.datapath.DeleteHostAddr(e.Addr))
			} else {
				errs = append(errs, m.datapath.DeleteEndpoint(e.Addr))
			}
		}
	}
	for _, i := range interfaces {
		if !indexes[i] {
			errs = append(errs, m.datapath.DeleteInterface(i))
		}
	}
	for cookie, networks := range sandboxes {
		for _, number := range networks {
			if !members[[2]uint64{cookie, uint64(number)}] {
				errs = append(errs, m.datapath.DeleteMember(cookie, number))
			}
		}
		if !cookies[cookie] {
			errs = append(errs, m.datapath.DeleteMember(cookie, 0))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) pruneRoutes() error {
	refused, err := m.links.Refused()
	if err != nil {
		return err
	}
	wanted := map[netip.Prefix]bool{}
	for _, p := range m.pools {
		wanted[p.Masked()] = true
	}
	for _, n := range m.networks {
		for _, p := range n.Subnets() {
			wanted[p.Masked()] = true
		}
	}
	var errs []error
	for _, p := range refused {
		if !wanted[p] {
			errs = append(errs, m.links.Unrefuse(p))
		}
	}
	return errors.Join(errs...)
}

func parseMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil
	}
	return mac
}
