// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/ports"
)

// PortBinding is a port to publish, as it was asked for.
type PortBinding struct {
	Protocol    bpf.Protocol // TCP or UDP
	Port        uint16       // of the container
	Host        netip.Addr   // of the host; the zero Addr for what the network says, or every one
	HostPort    uint16       // first that may be taken; 0: any
	HostPortEnd uint16       // last; 0: HostPort
	IPv4Only    bool         // another endpoint of the container leads out by IPv6
}

// one tells whether the binding is of one port of the host's alone.
func (b PortBinding) one() bool { return b.HostPort > 0 && b.HostPortEnd <= b.HostPort }

// Ports keeps the host's ports for the endpoints that have published them; [ports.Holder] is the real one.
type Ports interface {
	// Hold takes a port and passes on to via what the programs cannot translate; an error may be [ports.ErrInUse].
	Hold(p ports.Port, via netip.AddrPort) error
	// HoldEvery takes a port of every address of both families at once.
	HoldEvery(protocol string, number uint16, via4, via6 netip.AddrPort) error
	// Restrict lets only some sources be passed on, nil everybody; Release undoes it.
	Restrict(p ports.Port, sources []netip.Prefix)
	Release(p ports.Port)
	// Free finds a port that is free on all of the addresses.
	Free(protocol string, addrs []netip.Addr) (uint16, error)
}

// Publish makes ports of the host's lead to an endpoint, until [Manager.Unpublish] or Leave. Publishing the same again
// changes nothing, and others take the place of those before. A port that another endpoint or a process of the host has is refused, with its holder named.
func (m *Manager) Publish(ctx context.Context, networkID, id string, want []PortBinding) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unknown(m.endpoints[id], want) {
		m.mu.Unlock() // the engine may call us before it answers
		m.introduce(ctx, networkID)
		m.mu.Lock()
	}
	e, ok := m.endpoints[id]
	if !ok || e.Partial {
		return fmt.Errorf("endpoint %s: %w", id, ErrNotFound)
	}
	n, ok := m.networks[e.NetworkID]
	if !ok {
		return fmt.Errorf("network %s of the endpoint %s: %w", e.NetworkID, id, ErrNotFound)
	}
	asked := digest(want)
	if len(want) == 0 || n.Options.Publish == PublishGWBridge || e.Published != nil && e.Asked == asked {
		return nil
	}
	if err := m.unpublish(e); err != nil {
		return err
	}
	if why := n.Options.unpublishable(); why != "" && n.Options.Publish == PublishOff {
		return invalid{fmt.Errorf("the network %s publishes no ports, since %s: leave -p away, its containers are reached at their own addresses", cmp.Or(n.Name, n.ID), why)}
	}
	if n.Options.Publish == PublishOff && m.publishesElsewhere(e) {
		return nil
	}
	if n.Options.Publish == PublishOff {
		return invalid{fmt.Errorf("the network %s has publish=%s: leave -p away, or use another network", cmp.Or(n.Name, n.ID), PublishOff)}
	}
	e.Asked = asked
	err := m.publish(n, e, want)
	if err == nil {
		return nil
	}
	undone := m.unpublish(e)
	if errors.Is(err, errElsewhere) {
		m.log.WithFields(logrus.Fields{"endpoint": e.ID, "network": cmp.Or(n.Name, n.ID)}).WithError(err).
			Info("published nothing here: the engine asks again if another network of the container becomes its gateway")
		return undone
	}
	return errors.Join(err, undone)
}

// errElsewhere is of a port that a container may share, but not here: on another of its networks. The engine joins
// networks in no order, and asks each for the ports that is the gateway until a better one is joined.
var errElsewhere = errors.New("the container may share it there, and is on both networks")

// publishesElsewhere tells whether the endpoint's container is on another network, which publishes ports.
func (m *Manager) publishesElsewhere(e *Endpoint) bool {
	for _, n := range m.networks {
		if n.ID != e.NetworkID && n.Options.Publish == PublishEBPF && !n.Internal && m.services.Joining(e.ID, n.ID) {
			return true
		}
	}
	return false
}

// unknown tells whether it matters whose an endpoint is, and that is not known yet: it asks for a port that another has,
// and their names and networks say whether they may share it, or for one where its network publishes none.
func (m *Manager) unknown(e *Endpoint, want []PortBinding) bool {
	if e == nil || m.introduce == nil || len(want) == 0 {
		return false
	}
	known := m.services.Known(e.ID)
	if n := m.networks[e.NetworkID]; n != nil && n.Options.Publish == PublishOff {
		return !known
	}
	for _, other := range m.endpoints {
		if other == e || len(other.Published) == 0 || known && (other.NetworkID != e.NetworkID || m.services.Known(other.ID)) {
			continue
		}
		for _, b := range want {
			if b.one() && slices.ContainsFunc(other.Published, func(p Published) bool { return p.Protocol == b.Protocol && p.includes(b.HostPort) }) {
				return true
			}
		}
	}
	return false
}

// digest tells whether ports that are asked for are those of before.
func digest(want []PortBinding) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, want) // a hash never fails
	return h.Sum64()
}

func (m *Manager) publish(n *Network, e *Endpoint, want []PortBinding) error {
	want = slices.Clone(want)
	e.PublishedAt = m.nextMoment()
	slices.SortFunc(want, func(a, b PortBinding) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Host.Compare(b.Host), cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Port, b.Port))
	})
	want = slices.CompactFunc(want, func(a, b PortBinding) bool { return a == b && b.one() }) // given twice
	for _, b := range want {
		if err := m.checkBinding(b); err != nil {
			return err
		}
		if err := m.choose(n, e, b); err != nil {
			return fmt.Errorf("publish the port %d/%s: %w", b.Port, transport(b.Protocol), err)
		}
	}
	if err := m.put(bucketEndpoints, e.ID, e); err != nil {
		return fmt.Errorf("record the endpoint %s: %w", e.ID, err)
	}
	return m.services.PutEndpoint(m.service(e))
}

// nextMoment is now, or after the last moment of any endpoint where the clock was set back: the first has a port.
func (m *Manager) nextMoment() time.Time {
	now := time.Now()
	for _, e := range m.endpoints {
		if !now.After(e.PublishedAt) {
			now = e.PublishedAt.Add(time.Nanosecond)
		}
	}
	return now
}

// checkBinding refuses an address that is not the host's.
func (m *Manager) checkBinding(b PortBinding) error {
	if !b.Host.IsValid() || b.Host.IsUnspecified() || b.Host.IsLoopback() {
		return nil
	}
	has, err := m.links.HasAddr(b.Host)
	if err == nil && !has {
		err = invalid{fmt.Errorf("publish the port %d/%s: the host has no address %s: see `ip address`, or leave the address away", b.Port, transport(b.Protocol), b.Host)}
	}
	return err
}

// choose takes the first host port that can be had.
func (m *Manager) choose(n *Network, e *Endpoint, b PortBinding) error {
	hosts, err := m.leaveToSiblings(e, b, m.hostsOf(n, e, b))
	if err != nil || len(hosts) == 0 {
		return err
	}
	if b.one() {
		if e.has(b.Protocol, hosts, b.HostPort) { // where there are more, another is chosen
			return invalid{fmt.Errorf("the container asks for the host's port %d twice: on every address and on one of them, or for two of its ports: "+
				"leave one of both away, or choose another port", b.HostPort)}
		}
		return m.take(e, b, hosts, b.HostPort)
	}
	if b.HostPort == 0 {
		return m.takeAny(e, b, hosts)
	}
	for port := int(b.HostPort); port <= int(b.HostPortEnd); port++ {
		if e.has(b.Protocol, hosts, uint16(port)) || m.publisher(e, b.Protocol, hosts, uint16(port)) != nil {
			continue
		}
		err := m.take(e, b, hosts, uint16(port))
		if !errors.Is(err, ports.ErrInUse) {
			return err
		}
	}
	return conflict{fmt.Errorf("every port from %d to %d is taken: see `mustang ports` and `ss -lntu`, and give a wider range", b.HostPort, b.HostPortEnd)}
}

// anyTries is how often another may take a port that was free a moment ago.
const anyTries = 16

func (m *Manager) takeAny(e *Endpoint, b PortBinding, hosts []netip.Addr) error {
	for try := 1; ; try++ {
		port, err := m.ports.Free(transport(b.Protocol), hosts)
		if err != nil {
			return err
		}
		if m.publisher(e, b.Protocol, hosts, port) == nil {
			err = m.take(e, b, hosts, port)
		} else {
			err = ports.ErrInUse
		}
		if !errors.Is(err, ports.ErrInUse) || try == anyTries {
			return err
		}
	}
}

// hostsOf are the addresses of the host that a binding is about. A family that is routed is published at the
// endpoint's own address instead.
func (m *Manager) hostsOf(n *Network, e *Endpoint, b PortBinding) []netip.Addr {
	hosts := []netip.Addr{b.Host}
	if !b.Host.IsValid() {
		hosts = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		if n.Options.HostBinding.IsValid() {
			hosts = []netip.Addr{n.Options.HostBinding}
		}
	}
	only4 := b.IPv4Only || !b.Host.IsValid() && n.Options.routed(false) && !e.IPv6.IsValid() // what it is asked for at its own address, no other leads to
	return slices.DeleteFunc(hosts, func(host netip.Addr) bool {
		if only4 && host.Is6() {
			return true
		}
		if !n.Options.routed(host.Is6()) {
			return false
		}
		for _, a := range e.addrs() {
			if a.Is6() == host.Is6() {
				if !e.routes(b.Protocol, a, b.Port) { // it may be asked for at several addresses of the host's
					e.add(Published{Protocol: b.Protocol, Host: netip.AddrPortFrom(a, b.Port), Port: b.Port, Count: 1, Routed: true})
				}
			}
		}
		return true
	})
}

func (o Options) gatewayMode(v6 bool) string {
	if v6 {
		return o.GatewayMode6
	}
	return o.GatewayMode4
}

// routed tells whether containers are reached at their own addresses, by the family of those.
func (o Options) routed(v6 bool) bool { return o.gatewayMode(v6) == GatewayRouted }

// leaveToSiblings leaves out addresses at which another endpoint of the same container has published the port: it leads
// out by one family, and this one by the other. The engine tells only the one for IPv4 so, which may come second.
func (m *Manager) leaveToSiblings(e *Endpoint, b PortBinding, hosts []netip.Addr) ([]netip.Addr, error) {
	var left []netip.Addr
	for _, host := range hosts {
		other := m.publisher(e, b.Protocol, []netip.Addr{host}, b.HostPort)
		if other == nil || !b.one() || e.Sandbox == "" || other.Sandbox != e.Sandbox {
			left = append(left, host)
			continue
		}
		if !b.IPv4Only {
			e.Asked = 0 // the engine may ask again when the other is gone
			continue
		}
		if err := m.giveUp(other, host.Is6()); err != nil {
			return nil, err
		}
		left = append(left, host)
	}
	return left, nil
}

// giveUp takes back the ports of one family.
func (m *Manager) giveUp(e *Endpoint, v6 bool) error {
	had := e.Published
	var kept, gone []Published
	for _, p := range had {
		if p.Host.Addr().Is6() == v6 && !p.Routed {
			gone = append(gone, p)
		} else {
			kept = append(kept, p)
		}
	}
	e.Published, e.Asked = kept, 0
	if err := m.services.PutEndpoint(m.service(e)); err != nil {
		e.Published = had
		return err
	}
	m.letGo(e, gone)
	return m.put(bucketEndpoints, e.ID, e)
}

// publisher is another endpoint that has the port on one of the addresses.
func (m *Manager) publisher(e *Endpoint, protocol bpf.Protocol, hosts []netip.Addr, port uint16) *Endpoint {
	for _, other := range m.endpoints {
		if other != e && other.has(protocol, hosts, port) {
			return other
		}
	}
	return nil
}

// refuseTaken refuses a port that another endpoint has, unless that could be a replica, as services know.
func (m *Manager) refuseTaken(e *Endpoint, b PortBinding, hosts []netip.Addr, port uint16) error {
	var holders []*Endpoint // the first of them is named
	for _, other := range m.endpoints {
		if other != e && other.has(b.Protocol, hosts, port) {
			holders = append(holders, other)
		}
	}
	slices.SortFunc(holders, func(a, b *Endpoint) int { return a.PublishedAt.Compare(b.PublishedAt) })
	for _, other := range holders {
		may := other.NetworkID == e.NetworkID || m.services.Joining(e.ID, other.NetworkID)
		for _, p := range other.Published {
			if p.Protocol == b.Protocol && p.includes(port) {
				may = may && p.Port+port-p.Host.Port() == b.Port
			}
		}
		if !may {
			return conflict{fmt.Errorf("port %d/%s is published by %s already: choose another, or stop it", port, transport(b.Protocol), m.services.Label(other.ID))}
		}
		if other.NetworkID != e.NetworkID {
			return conflict{fmt.Errorf("port %d/%s is published by %s already, on another network: %w", port, transport(b.Protocol), m.services.Label(other.ID), errElsewhere)}
		}
	}
	return nil
}

// take takes one port on all of the addresses, or none.
func (m *Manager) take(e *Endpoint, b PortBinding, hosts []netip.Addr, port uint16) error {
	if err := m.refuseTaken(e, b, hosts, port); err != nil {
		return err
	}
	if len(hosts) == 2 && m.holdBoth(e, b.Protocol, port, b.Port) == nil { // if it fails, trying each tells which one is in the way
		for _, host := range hosts {
			e.add(Published{Protocol: b.Protocol, Host: netip.AddrPortFrom(host, port), Port: b.Port, Count: 1})
		}
		return nil
	}
	var taken []Published
	for _, host := range hosts {
		p := Published{Protocol: b.Protocol, Host: netip.AddrPortFrom(host, port), Port: b.Port, Count: 1}
		err := m.hold(e, p.Protocol, p.Host, p.Port)
		if errors.Is(err, unix.EAFNOSUPPORT) && !b.Host.IsValid() {
			continue // a host without IPv6
		}
		if errors.Is(err, ports.ErrInUse) && m.publisher(e, b.Protocol, []netip.Addr{host}, port) != nil {
			err = nil // held for another endpoint at other addresses: services refuse it by its name
		}
		if err != nil {
			m.letGo(e, taken)
			return err
		}
		taken = append(taken, p)
	}
	for _, p := range taken {
		e.add(p)
	}
	return nil
}

// Unpublish undoes Publish; nothing published is no error.
func (m *Manager) Unpublish(_ context.Context, _, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.endpoints[id]
	if !ok {
		return nil
	}
	return m.unpublish(e)
}

func (m *Manager) unpublish(e *Endpoint) error {
	if e.Published == nil {
		return nil
	}
	had := e.Published
	e.Published = nil
	if err := m.services.Unpublish(e.ID); err != nil {
		e.Published = had
		return fmt.Errorf("take back the ports of the endpoint %s: %w", e.ID, err)
	}
	m.letGo(e, had)
	if e.Partial {
		return nil // its record goes next
	}
	if err := m.put(bucketEndpoints, e.ID, e); err != nil {
		return fmt.Errorf("record the endpoint %s: %w", e.ID, err)
	}
	return nil
}
