// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/nft"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/service/dns"
)

// The engine's resolver, and the address that ours listens on, in every sandbox.
var resolverAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// enginePools gives the engine's IPAM calls the leases of ipam.
type enginePools struct{ ipam *ipam.IPAM }

func (p enginePools) RequestPool(space, pool, subPool string, v6 bool) (string, netip.Prefix, error) {
	got, err := p.ipam.RequestPool(ipam.Request{Space: space, Pool: pool, SubPool: subPool, IPv6: v6})
	if errors.Is(err, ipam.ErrRoute) {
		err = fmt.Errorf("%w; for macvlan or ipvlan on that very network leave --ipam-driver away: Docker's own takes it", err)
	}
	return got.ID, got.Subnet, err
}

func (p enginePools) ReleasePool(id string) error { return p.ipam.ReleasePool(id) }

func (p enginePools) RequestAddress(id string, addr netip.Addr, gateway bool, owner string) (netip.Prefix, error) {
	return p.ipam.RequestAddress(id, addr, ipam.AddressOptions{Gateway: gateway, Owner: owner})
}

func (p enginePools) ReleaseAddress(id string, addr netip.Addr) error {
	return p.ipam.ReleaseAddress(id, addr)
}

// watcherState is what `mustang status` says of the watcher.
type watcherState struct {
	synced atomic.Bool
	last   atomic.Int64 // when an event was last applied, ns since 1970; 0: never
	lag    atomic.Int64 // ns that it took
}

// applied is told how long after an event of the engine's the services knew.
func (h *host) applied(lag time.Duration) {
	h.watcher.last.Store(time.Now().UnixNano())
	h.watcher.lag.Store(int64(lag))
	h.metrics.EventApplied(lag)
}

// engineContainers tells the services of containers.
type engineContainers struct {
	*service.Manager
	host *host
}

func (c engineContainers) Sync() error { return c.host.synced() }

// leaseGrace is longer than an address takes from its lease to an endpoint that uses it.
const leaseGrace = time.Minute

// engineNetworks tells the driver what the engine has, and the leases what the driver has.
type engineNetworks struct {
	*driver.Manager
	host *host
}

// Collect lets go of endpoints that the engine has forgotten, of addresses that no endpoint has, and of subnets that no network has.
func (n engineNetworks) Collect(known map[string]map[string]bool, subnets map[netip.Prefix]bool) error {
	n.host.checkTables() // an engine that has started may have made its chains anew
	orphaned := n.Orphaned()
	err := n.Manager.Collect(known)
	if orphaned && !n.Orphaned() {
		err = errors.Join(err, n.host.synced())
	}
	if subnets != nil {
		for _, network := range n.Networks() {
			for _, p := range network.Subnets() {
				subnets[p.Masked()] = true
			}
		}
		released, e := n.host.ipam.CollectPools(subnets)
		if err = errors.Join(err, e); len(released) > 0 {
			n.host.log.WithField("subnets", released).Info("released subnets that the engine has forgotten")
		}
	}
	n.host.eachSubnet(func(network driver.Network, subnet netip.Prefix, inUse map[netip.Addr]bool) {
		released, e := n.host.ipam.Collect(subnet, inUse, leaseGrace)
		if err = errors.Join(err, e); len(released) > 0 {
			n.host.log.WithFields(logrus.Fields{"network": network.Name, "addresses": released}).
				Info("released addresses that the engine has forgotten")
		}
	})
	return err
}

// eachSubnet goes through the subnets of the networks, with the addresses that are in use in them.
func (h *host) eachSubnet(do func(network driver.Network, subnet netip.Prefix, inUse map[netip.Addr]bool)) {
	inUse := map[netip.Addr]bool{}
	for _, e := range h.driver.Endpoints() {
		inUse[e.IPv4.Addr()], inUse[e.IPv6.Addr()] = true, true
	}
	for _, network := range h.driver.Networks() {
		for _, s := range slices.Concat(network.IPv4, network.IPv6) {
			for _, a := range s.Aux {
				inUse[a] = true
			}
			do(network, s.Pool, inUse)
		}
	}
}

// sandboxNetwork opens the resolvers' sockets inside sandboxes.
type sandboxNetwork struct {
	links    link.Host
	datapath *bpf.Datapath
}

func (n sandboxNetwork) Listen(s dns.Sandbox) (udp net.PacketConn, tcp net.Listener, err error) {
	err = n.links.Do(s.Key, func() error {
		udp, tcp, err = dns.Listen(resolverAddr)
		return err
	})
	return udp, tcp, err
}

// Dial reaches the engine's resolver past our own hook, which sends everybody else to us.
func (n sandboxNetwork) Dial(ctx context.Context, s dns.Sandbox, network string) (conn net.Conn, err error) {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var exempt error
		if err := raw.Control(func(fd uintptr) {
			exempt = errors.Join(n.datapath.Exempt(int(fd)), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, nft.Mark))
		}); err != nil {
			return err
		}
		return exempt
	}}
	err = n.links.Do(s.Key, func() error {
		conn, err = dialer.DialContext(ctx, network, netip.AddrPortFrom(resolverAddr, 53).String())
		return err
	})
	return conn, err
}

// sandboxResolver starts and stops resolvers as endpoints come and go.
type sandboxResolver struct{ server *dns.Server }

func (r sandboxResolver) Add(cookie uint64, path string) (uint16, error) {
	return r.server.Add(dns.Sandbox{Cookie: cookie, Key: path})
}

func (r sandboxResolver) Remove(cookie uint64) { r.server.Remove(cookie) }
