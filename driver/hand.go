// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// errNoAddress says that a device has no address.
var errNoAddress = errors.New("give it one first")

// AddByHand makes an interface of any sandbox known to the datapath: `mustang ep add`. It has host
// scope: it is in no network and reaches hand-made services. The programs are attached to its host end,
// unless an operator did that already. Adding it again as it is returns it as it is.
func (m *Manager) AddByHand(_ context.Context, ifname, netns string) (Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.inspect(ifname, netns)
	if err != nil {
		return Endpoint{}, err
	}
	if err := m.makeRoomByHand(e); err != nil {
		return Endpoint{}, err
	}
	if had := m.endpoints[e.ID]; had != nil {
		return *had, m.setUpByHand(had)
	}
	if err := m.recordByHand(e); err != nil {
		return Endpoint{}, err
	}
	return *e, nil
}

// inspect looks at an interface of a sandbox and says what endpoint it would be.
func (m *Manager) inspect(ifname, netns string) (*Endpoint, error) {
	in, err := m.links.FindInside(netns, ifname)
	if err != nil {
		return nil, err
	}
	if len(in.Addrs) == 0 {
		return nil, fmt.Errorf("%s in %s has no address: %w", ifname, netns, errNoAddress)
	}
	cookie, err := m.links.Cookie(netns)
	if err != nil {
		return nil, err
	}
	host, err := m.links.Cookie("")
	if err != nil {
		return nil, err
	}
	if cookie == host {
		return nil, fmt.Errorf("%s is the host's own network namespace, which needs no endpoint: name a sandbox's", netns)
	}
	e := &Endpoint{Source: SourceHand, MAC: in.MAC.String(), IfName: ifname, Sandbox: netns, Cookie: cookie}
	for _, p := range in.Addrs {
		if p.Addr().Is4() && !e.IPv4.IsValid() {
			e.IPv4 = p
		} else if p.Addr().Is6() && !e.IPv6.IsValid() {
			e.IPv6 = p
		}
	}
	e.ID = "ep-" + e.addrs()[0].String()
	if in.Peer == 0 {
		return e, nil
	}
	return e, m.findHostEnd(e, in.Peer)
}

func (m *Manager) findHostEnd(e *Endpoint, index int) error {
	name, err := m.links.Name(index)
	if err != nil {
		return fmt.Errorf("the other end of %s is not on this host: %w", e.IfName, err)
	}
	dev, err := m.links.Find(name)
	if err != nil {
		return err
	}
	e.HostIf, e.Index, e.HostMAC = name, index, dev.MAC.String()
	return nil
}

// identity is what makes an endpoint made by hand the same one.
func (e *Endpoint) identity() *handIdentity {
	return &handIdentity{e.ID, e.Cookie, e.IPv4, e.IPv6, e.MAC, e.HostIf, e.HostMAC, e.Index}
}

type handIdentity struct {
	id            string
	cookie        uint64
	ipv4, ipv6    netip.Prefix
	mac           string
	host, hostMAC string
	index         int
}

// makeRoomByHand refuses an endpoint whose address another has. One made by hand that is gone, or has
// changed since, makes room.
func (m *Manager) makeRoomByHand(e *Endpoint) error {
	for _, other := range m.endpoints {
		for _, a := range other.addrs() {
			if a != e.IPv4.Addr() && a != e.IPv6.Addr() || !other.Partial && *other.identity() == *e.identity() {
				continue
			}
			if !other.Partial && !m.outdated(other, e) {
				return fmt.Errorf("%s is the address of the endpoint %s already: remove that one first, or give this one another address", a, other.ID)
			}
			if err := m.tearDownEndpoint(other); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// outdated tells whether an endpoint made by hand is gone, or is what e is now.
func (m *Manager) outdated(other, e *Endpoint) bool {
	if other.Source != SourceHand {
		return false
	}
	if other.Cookie == e.Cookie && other.ID == e.ID {
		return true
	}
	cookie, err := m.links.Cookie(other.Sandbox)
	return errors.Is(err, link.ErrNoNetns) || err == nil && cookie != other.Cookie
}

// recordByHand makes an endpoint that nothing is in the way of, or nothing of it.
func (m *Manager) recordByHand(e *Endpoint) error {
	e.Partial = true
	if err := m.put(bucketEndpoints, e.ID, e); err != nil {
		return fmt.Errorf("record the endpoint %s: %w", e.ID, err)
	}
	m.endpoints[e.ID] = e
	err := m.setUpByHand(e)
	if err == nil {
		e.Partial = false
		err = m.put(bucketEndpoints, e.ID, e)
	}
	if err != nil {
		e.Partial = true
		return errors.Join(err, m.tearDownEndpoint(e))
	}
	return nil
}

// setUpByHand makes the kernel agree with the record; repeating it changes nothing.
func (m *Manager) setUpByHand(e *Endpoint) error {
	for _, a := range e.addrs() {
		ep := bpf.Endpoint{Addr: a, IfIndex: e.Index, Redirect: e.HostIf != "", MAC: parseMAC(e.MAC), HostMAC: parseMAC(e.HostMAC)}
		if err := m.datapath.PutEndpoint(ep); err != nil {
			return err
		}
	}
	if e.HostIf != "" && !m.links.HasClsact(e.HostIf) {
		if err := m.attach(nil, e); err != nil {
			return err
		}
	}
	return m.enter(nil, e, e.Cookie)
}

// RemoveByHand forgets an endpoint made by hand, by address.
func (m *Manager) RemoveByHand(_ context.Context, ref string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	addr, err := netip.ParseAddr(ref)
	if err != nil {
		return fmt.Errorf("remove the endpoint %q: give its address, as `mustang ep ls` shows it", ref)
	}
	for _, e := range m.endpoints {
		for _, a := range e.addrs() {
			if a != addr.Unmap() {
				continue
			}
			if e.Source != SourceHand {
				return fmt.Errorf("the endpoint %s belongs to a container: remove that", ref)
			}
			return m.tearDownEndpoint(e)
		}
	}
	return fmt.Errorf("endpoint %s: %w: `mustang ep ls` lists them", ref, ErrNotFound)
}
