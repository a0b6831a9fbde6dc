// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/driver"
)

// Check implements [Host]. Of the attachment it looks at IPs, MAC and Routes, which the runtime was told by Add.
func (m *Manager) Check(ctx context.Context, a Attachment) error {
	what := fmt.Sprintf("check %s of container %s on the network %s", a.IfName, a.Container, a.Network)
	unlock := m.lock(a.Key)
	defer unlock()
	had := m.get(a.Key)
	if had == nil {
		return notFound{fmt.Errorf("%s: there is no such attachment: make the container anew", what)}
	}
	cookie, err := m.Links.Cookie(a.Sandbox)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if cookie != had.Cookie {
		return conflictf("%s: the network namespace %s is not the one that it was added to: make the container anew", what, a.Sandbox)
	}
	ep, err := m.Driver.Endpoint(ctx, NetworkID(a.Network), a.endpoint())
	if errors.Is(err, driver.ErrNotFound) {
		return notFound{fmt.Errorf("%s: %w", what, err)}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	inside, err := m.Links.FindInside(a.Sandbox, a.IfName)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if ep.HostIf != "" && inside.Peer != ep.Index {
		return conflictf("%s: the device is not the other end of %s", what, ep.HostIf)
	}
	if !inside.Up {
		return conflictf("%s: the device is down: set it up in the sandbox, or make the container anew", what)
	}
	if a.MAC != "" && a.MAC != inside.MAC.String() {
		return conflictf("%s: the device's MAC is %s, not %s: make the container anew", what, inside.MAC, a.MAC)
	}
	for _, ip := range a.IPs {
		if !slices.ContainsFunc(inside.Addrs, func(p netip.Prefix) bool { return p.Addr() == ip }) {
			return conflictf("%s: the device lacks the address %s: make the container anew", what, ip)
		}
		if ip != ep.IPv4.Addr() && ip != ep.IPv6.Addr() || !a.Of.Delegated && !m.leased(a.Key, ip) {
			return conflictf("%s: the address %s is not the container's any more: make the container anew", what, ip)
		}
	}
	routes, err := m.Links.RoutesInside(a.Sandbox)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, to := range a.Routes {
		if !slices.Contains(routes, to) {
			return conflictf("%s: there is no route to %s: make the container anew", what, to)
		}
	}
	return nil
}

// leased tells whether the attachment has the lease of an address.
func (m *Manager) leased(k Key, ip netip.Addr) bool {
	for _, p := range m.poolsOf(k.Network) {
		for _, l := range m.Pools.Leases(p.ID) {
			if l.Address.Addr() == ip {
				return l.Owner == k.String()
			}
		}
	}
	return false
}
