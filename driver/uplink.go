// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// SyncUplinks makes the datapath agree with what leads out of the host, and with the host's own addresses, as they
// are now. Call it whenever a device, an address or a route has changed.
func (m *Manager) SyncUplinks() error {
	m.syncing.Lock()
	defer m.syncing.Unlock()
	m.mu.Lock()
	names := m.uplinkNames
	m.mu.Unlock()
	seen, err := m.lookOutside(names) // which takes long on a host with many devices
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		err = m.syncUplinks(seen)
	}
	return errors.Join(err, m.renewSlaves())
}

// SyncAddrs is SyncUplinks for the host's own addresses alone, of which each end of an endpoint has its gateway's.
func (m *Manager) SyncAddrs() error {
	m.syncing.Lock()
	defer m.syncing.Unlock()
	addrs, err := m.links.HostAddrs()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.syncAddrs(addrs)
}

// SetUplinks has the devices with these names lead out from the next SyncUplinks on, as Config.Uplinks does.
func (m *Manager) SetUplinks(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uplinkNames = names
}

// outside is what the kernel has that leads out of the host, and the host's own addresses.
type outside struct {
	addrs   []netip.Addr
	uplinks []link.Uplink
	unfit   []string
}

func (m *Manager) lookOutside(names []string) (o outside, err error) {
	if o.addrs, err = m.links.HostAddrs(); err != nil {
		return o, err
	}
	o.uplinks, o.unfit, err = m.links.Uplinks(names)
	return o, err
}

func (m *Manager) syncUplinks(now outside) error {
	for _, why := range now.unfit {
		if !slices.Contains(m.unfit, why) {
			m.log.Warnf("%s, so that it is no uplink: what comes and leaves by it is left to the host's stack", why)
		}
	}
	m.unfit = now.unfit
	return errors.Join(m.syncAddrs(now.addrs), m.setUplinks(now.uplinks))
}

// syncAddrs makes the host's own addresses known, where ports are published and containers reach the host.
func (m *Manager) syncAddrs(addrs []netip.Addr) error {
	now := map[netip.Addr]bool{}
	var errs []error
	for _, a := range addrs {
		now[a] = true
		if m.hostAddrs[a] {
			continue
		}
		if err := m.datapath.PutEndpoint(bpf.Endpoint{Addr: a, Host: true}); err != nil {
			delete(now, a)
			errs = append(errs, err)
		}
	}
	for a := range m.hostAddrs {
		if now[a] {
			continue
		}
		if err := m.datapath.DeleteHostAddr(a); err != nil {
			now[a] = true
			errs = append(errs, err)
		}
	}
	m.hostAddrs = now
	return errors.Join(errs...)
}

// setUplinks guards what leads out, and nothing else.
func (m *Manager) setUplinks(uplinks []link.Uplink) error {
	names, indexes := map[string]bool{}, map[int]string{}
	for _, u := range uplinks {
		names[u.Name], indexes[u.Index] = true, u.Name
	}
	errs := []error{m.renameUplinks(indexes)}
	for name := range m.uplinks {
		if names[name] {
			continue
		}
		if m.isParent(name, nil) {
			delete(m.uplinks, name)
			continue
		}
		errs = append(errs, m.datapath.DetachLXC(name))
		delete(m.uplinks, name)
	}
	had, err := m.datapath.Uplinks()
	errs = append(errs, err)
	before := map[int]bpf.Uplink{}
	for _, u := range had {
		before[u.IfIndex] = u
		if indexes[u.IfIndex] == "" {
			errs = append(errs, m.unguardUplink(u.IfIndex), m.datapath.DeleteUplink(u.IfIndex))
		}
	}
	for _, u := range uplinks {
		if err := m.setUplink(u, before[u.Index]); err != nil {
			errs = append(errs, fmt.Errorf("lead out by %s: %w", u.Name, err))
		}
	}
	return errors.Join(errs...)
}

// unguardUplink takes filters, which unlike links no pin tells of, from a device that does not lead out any more, or not since a start.
func (m *Manager) unguardUplink(index int) error {
	name, err := m.links.Name(index)
	if err != nil || m.isParent(name, nil) { // it is gone, or guarded for a network
		return nil
	}
	return m.links.DetachClsact(name)
}

// renameUplinks keeps the programs of devices that have another name now, so that they miss no packet. Where the name
// was another uplink's, both are guarded anew.
func (m *Manager) renameUplinks(names map[int]string) error {
	var errs []error
	for name, u := range maps.Clone(m.uplinks) {
		now := names[u.IfIndex]
		if _, known := m.uplinks[name]; !known || now == "" || now == name {
			continue
		}
		if _, taken := m.uplinks[now]; taken {
			errs = append(errs, m.datapath.DetachLXC(name), m.datapath.DetachLXC(now))
			delete(m.uplinks, now)
		} else if err := m.datapath.RenameLXC(name, now); err != nil {
			errs = append(errs, err)
			continue
		} else {
			m.uplinks[now] = u
		}
		delete(m.uplinks, name)
	}
	return errors.Join(errs...)
}

func (m *Manager) setUplink(u link.Uplink, was bpf.Uplink) error {
	now := bpf.Uplink{IfIndex: u.Index, SNAT4: steady(u, was.SNAT4, false), SNAT6: steady(u, was.SNAT6, true)}
	if m.uplinks[u.Name] == now {
		return nil
	}
	if m.uplinks[u.Name].IfIndex != now.IfIndex { // who knows the answers comes before anything leaves
		end := bpf.UplinkEnd
		if u.IP {
			end = bpf.IPUplinkEnd
		}
		if err := m.attachDevice(u.Name, u.Device, end); err != nil {
			return err
		}
	}
	if err := m.datapath.PutUplink(now); err != nil {
		return err
	}
	m.uplinks[u.Name] = now
	m.log.WithField("uplink", u.Name).Infof("leading out by %s as %s", u.Name, addrsText(now.SNAT4, now.SNAT6))
	return nil
}

// steady is the address of the uplink's that flows leave with: the one that they have had, as long as it is there.
func steady(u link.Uplink, had netip.Addr, v6 bool) netip.Addr {
	if slices.Contains(u.Addrs, had) {
		return had
	}
	return u.Addr(v6)
}

func addrsText(addrs ...netip.Addr) string {
	text := "nobody, for want of an address"
	for i, a := range addrs {
		switch {
		case !a.IsValid():
		case i == 0:
			text = a.String()
		case addrs[0].IsValid():
			text += " and " + a.String()
		default:
			text = a.String()
		}
	}
	return text
}

// leadsOut tells whether our programs lead out of the network.
func (n *Network) leadsOut() bool {
	return !n.Internal && !n.Off() && n.Options.Publish != PublishGWBridge
}

// masquerades tells whether what leaves gets an address of the host's, by family.
func (n *Network) masquerades(v6 bool) bool {
	return n.leadsOut() && !n.Options.NoMasquerade && !n.Options.routed(v6)
}
