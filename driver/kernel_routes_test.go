// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/driver/link"
)

// What is between the devices of the kernel in miniature: routes, forwarding and filters.

func (k *kernel) Connect(name string, addrs, gateways []netip.Addr, _ net.HardwareAddr) error {
	if err := k.fault.hit("connect"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[name]
	if d == nil {
		return fmt.Errorf("find the device %s: no such device", name)
	}
	d.addrs = slices.Clone(addrs)
	for _, gw := range gateways {
		if !slices.Contains(d.gateways, gw) {
			d.gateways = append(d.gateways, gw)
		}
	}
	return nil
}

func (k *kernel) Reach(name string, addrs, _ []netip.Addr, mac net.HardwareAddr) error {
	return k.Connect(name, addrs, nil, mac)
}

func (k *kernel) Refuse(p netip.Prefix) error {
	if err := k.fault.hit("refuse"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refused[p.Masked()] = true
	return nil
}

func (k *kernel) Unrefuse(p netip.Prefix) error {
	if err := k.fault.hit("unrefuse"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.refused, p.Masked())
	return nil
}

func (k *kernel) Refused() ([]netip.Prefix, error) {
	if err := k.fault.hit("refused"); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Keys(k.refused)), nil
}

func (k *kernel) UplinkMTU() int { return 1500 }

// OnLink is the LAN of the host.
func (k *kernel) OnLink() ([]netip.Prefix, error) {
	if err := k.fault.hit("on link"); err != nil {
		return nil, err
	}
	return []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, nil
}

func (k *kernel) AttachClsact(name string, _, _ link.Filter) error {
	if err := k.fault.hit("attach clsact"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[name] == nil {
		return fmt.Errorf("find the device %s: no such device", name)
	}
	k.devices[name].clsact = true
	return nil
}

func (k *kernel) DetachClsact(name string) error {
	if err := k.fault.hit("detach clsact"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.devices[name]; d != nil {
		d.clsact = false
	}
	return nil
}

func (k *kernel) Forward(name string, ipv6 bool) error {
	if err := k.fault.hit("forward"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[name]
	if d == nil {
		return link.ErrNoDevice
	}
	d.forwards = true
	return nil
}

func (k *kernel) CanForward6() error { return k.forwards6 }

func (k *kernel) RefuseInside(path string, p netip.Prefix) error {
	if err := k.fault.hit("refuse inside"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.netns[path]
	if n == nil {
		return link.ErrNoNetns
	}
	if n.refused == nil {
		n.refused = map[netip.Prefix]bool{}
	}
	n.refused[p] = true
	return nil
}

func (k *kernel) UnrefuseInside(path string, p netip.Prefix) error {
	if err := k.fault.hit("unrefuse inside"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.netns[path]; n != nil {
		delete(n.refused, p)
	}
	return nil
}

func (k *kernel) HasClsact(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.devices[name] != nil && k.devices[name].tc
}
