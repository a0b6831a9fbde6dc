// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/service"
)

// Sources of networks and endpoints.
const (
	SourceDocker = "docker"
	SourceCNI    = "cni"
	SourceHand   = "ep" // `mustang ep add`
)

// idBytes of an endpoint's id go into the names of its devices, which have room for 15 bytes.
const idBytes = 11

// hostName is the name of an endpoint's host end, and peerName of its other device, on the host.
func hostName(id string) string { return "mst" + id[:idBytes] }
func peerName(id string) string { return "msp" + id[:idBytes] }

// addrs are the endpoint's addresses, of the families it has.
func (e *Endpoint) addrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// service is the endpoint as services know it.
func (m *Manager) service(e *Endpoint) service.Endpoint {
	s := service.Endpoint{ID: e.ID, Network: e.NetworkID, Cookie: e.Cookie, Options: e.Options, Ports: e.ports(), PortsSince: e.PublishedAt, Sources: m.sources(e)}
	if e.IPv4.IsValid() {
		s.IPv4 = e.IPv4.Addr()
	}
	if e.IPv6.IsValid() {
		s.IPv6 = e.IPv6.Addr()
	}
	return s
}

// CreateEndpoint creates the devices of an endpoint and makes its addresses known to the datapath.
// Creating it again as it is returns it as it is.
func (m *Manager) CreateEndpoint(_ context.Context, cfg EndpointConfig) (Endpoint, error) {
	if err := checkEndpointOptions(cfg.Options); err != nil {
		return Endpoint{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.networks[cfg.NetworkID]
	if !ok {
		return Endpoint{}, fmt.Errorf("network %s: %w: remove it (docker network rm) and make it anew", cfg.NetworkID, ErrNotFound)
	}
	if n.Partial {
		return Endpoint{}, fmt.Errorf("network %s: %w: it is half removed, remove it again", cfg.NetworkID, ErrNotFound)
	}
	if had, ok := m.endpoints[cfg.ID]; ok && !had.Partial {
		if !had.same(cfg) {
			return Endpoint{}, fmt.Errorf("create endpoint %s: it exists with the addresses %v, the MAC %s and the options %v",
				cfg.ID, had.addrs(), had.MAC, had.Options)
		}
		index, mac := had.Index, had.HostMAC
		if err := m.setUpEndpoint(n, had); err != nil || index == had.Index && mac == had.HostMAC {
			return had.made(n), err
		}
		return had.made(n), m.put(bucketEndpoints, had.ID, had)
	}
	e, err := newEndpoint(n, cfg)
	if err != nil {
		return Endpoint{}, err
	}
	if err := m.checkForeign(n, e); err != nil {
		return Endpoint{}, err
	}
	if m.mode(n).end() != bpf.SandboxEnd {
		e.HostIf = hostName(e.ID)
	}
	if err := m.makeRoom(e); err != nil {
		return Endpoint{}, fmt.Errorf("create endpoint %s: %w", cfg.ID, err)
	}
	// the record comes first: whatever happens after it, Restore can finish the undo, for the engine never
	// removes what it was told could not be made
	e.Partial = true
	if err := m.put(bucketEndpoints, e.ID, e); err != nil {
		return Endpoint{}, fmt.Errorf("record the endpoint %s: %w", e.ID, err)
	}
	m.endpoints[e.ID] = e
	e.into = cfg.Into
	err = m.setUpEndpoint(n, e)
	e.into = ""
	if err != nil {
		return Endpoint{}, errors.Join(err, m.tearDownEndpoint(e))
	}
	e.Partial = false
	if e.Source == SourceCNI {
		return e.made(n), nil // Join records it, in the same call of the runtime: who dies before has attached nothing
	}
	if err := m.put(bucketEndpoints, e.ID, e); err != nil {
		e.Partial = true
		return Endpoint{}, errors.Join(fmt.Errorf("record the endpoint %s: %w", e.ID, err), m.tearDownEndpoint(e))
	}
	return e.made(n), nil
}

// made is the endpoint as its creator learns it: without the MAC of an ipvlan slave, which is its
// parent's and which an engine would try to set.
func (e *Endpoint) made(n *Network) Endpoint {
	out := *e
	if n.Options.Mode == ModeIPvlan {
		out.MAC = ""
	}
	return out
}

// checkForeign refuses an address that the host has on the LAN of a parent, which Docker's IPAM knows nothing of.
func (m *Manager) checkForeign(n *Network, e *Endpoint) error {
	if n.Options.Parent == "" {
		return nil
	}
	for _, a := range e.addrs() {
		has, err := m.links.HasAddr(a)
		if err != nil {
			return err
		}
		if has {
			return conflict{fmt.Errorf("create endpoint %s: its address %s is the host's own: keep it out of the network's range of addresses, as with --ip-range, or --aux-address host=%s",
				e.ID, a, a)}
		}
	}
	return nil
}

// makeRoom refuses an endpoint that another is in the way of, unless that is nobody's any more.
func (m *Manager) makeRoom(e *Endpoint) error {
	for _, other := range m.endpoints {
		var err error
		for _, a := range other.addrs() {
			if slices.Contains(e.addrs(), a) {
				err = fmt.Errorf("its address %s belongs to the endpoint %s: remove that one first, or choose another address", a, other.ID)
			}
		}
		sameAddr := err != nil
		if !sameAddr && other.PeerIf == e.PeerIf {
			err = fmt.Errorf("its device %s belongs to the endpoint %s", e.PeerIf, other.ID)
		}
		// the engine gives no address twice: it has removed the other while we were away
		forgotten := sameAddr && other.Source == SourceDocker && other.NetworkID == e.NetworkID && !m.inUse(other)
		if forgotten || (err != nil || other.ID == e.ID) && other.Partial {
			err = m.tearDownEndpoint(other)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func newEndpoint(n *Network, cfg EndpointConfig) (*Endpoint, error) {
	e := &Endpoint{
		ID: cfg.ID, NetworkID: cfg.NetworkID, Source: cmp.Or(cfg.Source, SourceDocker), IPv4: cfg.IPv4, IPv6: cfg.IPv6,
		MAC: cfg.MAC, Shaped: cfg.Shaped, Options: cfg.Options, IfName: cfg.Options[optionIfName],
	}
	if len(e.ID) < idBytes {
		return nil, fmt.Errorf("create endpoint %q: its id must have at least %d characters", e.ID, idBytes)
	}
	if len(e.addrs()) == 0 {
		return nil, fmt.Errorf("create endpoint %s: it needs an address", e.ID)
	}
	for _, a := range e.addrs() {
		if _, ok := n.subnetOf(a); !ok {
			return nil, invalid{fmt.Errorf("create endpoint %s: its address %s is in none of the network's subnets %v", e.ID, a, n.Subnets())}
		}
	}
	if e.MAC != "" && n.Options.Mode == ModeIPvlan {
		return nil, invalid{fmt.Errorf("create endpoint %s: the MAC %s cannot be had with mode=ipvlan, whose devices have their parent's: leave it away, or use mode=macvlan",
			e.ID, e.MAC)}
	}
	if e.MAC == "" {
		e.MAC = newMAC(e.addrs()[0]).String()
	}
	mac, err := net.ParseMAC(e.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, invalid{fmt.Errorf("create endpoint %s: %q is no MAC address of an interface (six bytes, the first even)", e.ID, e.MAC)}
	}
	e.PeerIf = peerName(e.ID)
	return e, nil
}

// guarded is the name under which the endpoint's programs are attached: of the host's end, or of the
// slave that has none.
func (e *Endpoint) guarded() string { return cmp.Or(e.HostIf, e.PeerIf) }

// newMAC makes the MAC that Docker's own drivers would give an IPv4 address, or a random local one.
func newMAC(addr netip.Addr) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	if addr.Is4() {
		copy(mac[2:], addr.AsSlice())
	} else {
		_, _ = rand.Read(mac[2:]) // never fails (crypto/rand)
	}
	return mac
}

// setUpEndpoint makes the kernel agree with the record; repeating it changes nothing.
func (m *Manager) setUpEndpoint(n *Network, e *Endpoint) error {
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", e.ID, err)
	}
	mtu := n.Options.MTU
	if mtu == 0 {
		mtu = m.links.UplinkMTU()
	}
	dev, err := m.mode(n).connect(n, e, mac, mtu)
	if err != nil {
		return err
	}
	if e.Index != dev.Index {
		if err := m.dropInterface(e); err != nil { // of a device that is gone
			return err
		}
	}
	e.Index, e.HostMAC = dev.Index, dev.MAC.String()
	if m.mode(n).end() == bpf.SandboxEnd { // there is one device, and ipvlan gives it its parent's MAC
		mac, e.MAC = dev.MAC, dev.MAC.String()
	}
	// the maps come before the programs, and these before the engine moves the peer: no packet is
	// ever judged by less than all of it
	if err := m.guardEndpoint(n, e, dev.MAC, mac); err != nil {
		return err
	}
	if err := m.services.PutEndpoint(m.service(e)); err != nil {
		return fmt.Errorf("tell the services of the endpoint %s: %w", e.ID, err)
	}
	return nil
}

// gatewaysOf are the gateway addresses that belong to the endpoint's subnets.
func (n *Network) gatewaysOf(e *Endpoint) []netip.Addr {
	var out []netip.Addr
	for _, a := range e.addrs() {
		if s, ok := n.subnetOf(a); ok && s.Gateway.IsValid() {
			out = append(out, s.Gateway.Addr())
		}
	}
	return out
}

// guardEndpoint makes the endpoint known and its traffic checked.
func (m *Manager) guardEndpoint(n *Network, e *Endpoint, hostMAC, mac net.HardwareAddr) error {
	if n.Off() {
		return m.guardOff(n, e)
	}
	if err := m.putDatapath(n, e, hostMAC, mac); err != nil {
		return err
	}
	return m.attach(n, e)
}

func (m *Manager) putDatapath(n *Network, e *Endpoint, hostMAC, mac net.HardwareAddr) error {
	if err := m.putInterface(n, e, hostMAC); err != nil {
		return err
	}
	for _, a := range e.addrs() {
		ep := bpf.Endpoint{
			Addr: a, IfIndex: e.Index, Network: n.Number, Redirect: e.HostIf != "", MAC: mac, HostMAC: hostMAC,
			Open: n.leadsOut() && n.Options.gatewayMode(a.Is6()) == GatewayOpen, Ping: n.leadsOut() && n.Options.routed(a.Is6()),
		}
		if e.Shaped { // past its end it would pass the queue by
			ep.Via = e.Index
		}
		if err := m.beside(n, &ep); err != nil {
			return err
		}
		if err := m.datapath.PutEndpoint(ep); err != nil {
			return err
		}
	}
	return nil
}

// putInterface describes the host's end, if there is one.
func (m *Manager) putInterface(n *Network, e *Endpoint, hostMAC net.HardwareAddr) error {
	if e.HostIf == "" {
		return nil
	}
	iface := bpf.Interface{
		IfIndex: e.Index, Network: n.Number, Strict: true, MAC: hostMAC,
		Egress: n.leadsOut(), Masq4: n.masquerades(false), Masq6: n.masquerades(true),
		Isolated4: n.Options.gatewayMode(false) == GatewayIsolated, Isolated6: n.Options.gatewayMode(true) == GatewayIsolated,
	}
	if iface.Egress {
		if err := m.links.Route(e.HostIf); err != nil {
			return err
		}
	}
	for _, gw := range n.gatewaysOf(e) {
		if gw.Is4() {
			iface.Gateway4 = gw
		} else {
			iface.Gateway6 = gw
		}
	}
	return m.datapath.PutInterface(iface)
}

// DeleteEndpoint removes an endpoint; a missing one is no error. Of one that a lost state knew it removes what is on the host.
func (m *Manager) DeleteEndpoint(_ context.Context, _, id string) error {
	m.services.Gone(id) // after a crash of the engine no Leave need have come
	m.removePair(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.endpoints[id]
	if !ok {
		return m.removeOrphan(id)
	}
	return m.tearDownEndpoint(e)
}

// removePair removes the devices of an endpoint that goes without the lock: it takes the kernel 20 ms, in most of which it has no lock
// either. What fails here tearDownEndpoint does again, and tells.
func (m *Manager) removePair(id string) {
	if name := m.leavingPair(id); name != "" {
		_ = m.links.Delete(name, id)
	}
}

// leavingPair records that an endpoint goes, and returns the host's end of its pair; "" if there is none to remove.
func (m *Manager) leavingPair(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.endpoints[id]
	if !ok || e.HostIf == "" || e.Source == SourceHand || m.unpublish(e) != nil {
		return ""
	}
	had := *e
	if m.markLeaving(e) != nil {
		e.Partial, e.leaving, e.Index = had.Partial, had.leaving, had.Index // so that it is tried again
		return ""
	}
	return e.HostIf
}

// markLeaving records that an endpoint goes, so that a start finishes it.
func (m *Manager) markLeaving(e *Endpoint) error {
	if found := m.findIndex(e); !found && e.Partial {
		return nil
	}
	e.leaving = e.leaving || !e.Partial
	e.Partial = true
	return m.put(bucketEndpoints, e.ID, e)
}

// dropInterface removes the entry of the host's end as it was recorded. After a reboot its ifindex may be
// another endpoint's.
func (m *Manager) dropInterface(e *Endpoint) error {
	if e.HostIf == "" {
		return nil
	}
	for _, other := range m.endpoints {
		if other.Index == e.Index && other.ID != e.ID {
			return nil
		}
	}
	return m.datapath.DeleteInterface(e.Index)
}

// tearDownEndpoint undoes setUpEndpoint and forgets the endpoint. The device goes before its programs and
// maps, so that no packet of it is judged by less than all of them.
func (m *Manager) tearDownEndpoint(e *Endpoint) error {
	unmarked := m.markLeaving(e)
	if !e.leaving { // half made, or half removed by another process
		// services learn whose the entries are that they found; where they refuse it, there are none
		_ = m.services.PutEndpoint(m.service(e))
		e.leaving = true
	}
	err := errors.Join(m.leave(e), m.services.RemoveEndpoint(e.ID))
	if e.Source != SourceHand {
		n := m.networks[e.NetworkID]
		err = errors.Join(err, m.mode(n).disconnect(n, e))
	}
	if err == nil {
		err = m.tearDownDatapath(e)
	}
	if err == nil && m.networks[e.NetworkID].Off() {
		err = m.setEnds(e.ID)
	}
	if err != nil {
		return fmt.Errorf("remove the endpoint %s: %w", e.ID, errors.Join(err, unmarked))
	}
	if err := m.remove(bucketEndpoints, e.ID); err != nil {
		return fmt.Errorf("forget the endpoint %s: %w", e.ID, err)
	}
	delete(m.endpoints, e.ID)
	return nil
}

// findIndex learns the ifindex of the host's end where its creation was killed before it was recorded, and tells whether it has: an entry of the
// maps may have it, and the device is the last to tell which.
func (m *Manager) findIndex(e *Endpoint) bool {
	if !e.Partial || e.HostIf == "" || e.Index != 0 {
		return false
	}
	dev, err := m.links.Find(e.HostIf)
	if err != nil {
		return false // there was none yet, or what its entry leaves is found by a start
	}
	e.Index = dev.Index
	return true
}

func (m *Manager) tearDownDatapath(e *Endpoint) error {
	var err error
	if name := e.guarded(); name != "" {
		err = m.datapath.DetachLXC(name)
	}
	for _, a := range e.addrs() {
		err = errors.Join(err, m.datapath.DeleteEndpoint(a))
	}
	if e.Source != SourceHand {
		return errors.Join(err, m.dropInterface(e))
	}
	if e.HostIf != "" {
		err = errors.Join(err, m.links.DetachClsact(e.HostIf))
	}
	return err
}

// Endpoint returns an endpoint, or an error that is [ErrNotFound].
func (m *Manager) Endpoint(_ context.Context, _, id string) (Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.endpoints[id]
	if !ok {
		return Endpoint{}, fmt.Errorf("endpoint %s: %w", id, ErrNotFound)
	}
	return *e, nil
}

// Endpoints lists the endpoints by ifindex, which is the order in which they came.
func (m *Manager) Endpoints() []Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Endpoint, 0, len(m.endpoints))
	for _, e := range m.endpoints {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.ID, b.ID))
	})
	return out
}
