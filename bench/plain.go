// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/link"
)

// owner marks our plain devices.
const owner = "bench"

const mtu = 1500

// plain is a host that connects two sandboxes as people do by hand, as the founding article does.
type plain struct {
	link.Host
	*pair
	host sandbox
}

// wirings connect client and server inside the host's namespace, by mode.
var wirings = map[string]func(plain) error{
	driver.ModeVeth:   func(p plain) error { return p.routed(link.TypeVeth) },
	driver.ModeNetkit: func(p plain) error { return p.routed(link.TypeNetkit) },
	driver.ModeBridge: plain.bridged,
	driver.ModeMacvlan: func(p plain) error {
		return p.slaves(link.Slave{Type: "macvlan", Mode: "bridge"})
	},
	driver.ModeIPvlan: func(p plain) error {
		return p.slaves(link.Slave{Type: "ipvlan", Mode: "l2", Flag: "bridge"})
	},
	modeIPvlanL3: func(p plain) error {
		return p.slaves(link.Slave{Type: "ipvlan", Mode: "l3", Flag: "bridge"})
	},
}

// newPlain makes a pair without eBPF, with a namespace that plays the host. The caller closes that too.
func newPlain(mode string) (p *pair, host sandbox, err error) {
	wire := wirings[mode]
	if wire == nil {
		return nil, host, fmt.Errorf("mode %s: there is no plain way to compare with", mode)
	}
	if host, err = newSandbox(); err != nil {
		return nil, host, err
	}
	if p, err = newPair(mode, false); err != nil {
		host.close()
		return nil, host, err
	}
	if err = host.do(func() error { return wire(plain{Host: link.Host{}, pair: p, host: host}) }); err == nil {
		err = forwards(host)
	}
	if err != nil {
		p.close()
		host.close()
		return nil, host, fmt.Errorf("connect two sandboxes by plain %s: %w", mode, err)
	}
	routed := mode == driver.ModeVeth || mode == driver.ModeNetkit
	rules := &rules{host: host, vip: plainVIP, server: serverAddr.Addr(), masquerade: !routed}
	p.vip, p.prepare = plainVIP, rules.set
	return p, host, nil
}

// forwards makes a namespace forward as a Docker host does.
func forwards(host sandbox) error {
	return errors.Join(host.sysctl("ipv4/ip_forward", "1"), host.sysctl("ipv4/conf/all/rp_filter", "0"))
}

// shortenConntrack lets conntrack forget connections as soon as their ports are used again: at the kernel's two
// minutes its table would be full after some runs. Before any rule the settings may not be there yet.
func shortenConntrack(host sandbox) error {
	for _, name := range []string{"time_wait", "close", "last_ack", "fin_wait", "close_wait"} {
		err := host.sysctl("netfilter/nf_conntrack_tcp_timeout_"+name, "1")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// ends are the two endpoints, with the names of their devices on the host.
func (p plain) ends() []struct {
	sandbox
	host, peer string
	addr       netip.Prefix
} {
	return []struct {
		sandbox
		host, peer string
		addr       netip.Prefix
	}{{p.client, "hc", "pc", clientAddr}, {p.server, "hs", "ps", serverAddr}}
}

// routed connects by pairs of devices and routes of the host. Where the article has proxy_arp, the host's ends
// have the gateway's address, which costs a packet nothing and does not delay the first.
func (p plain) routed(kind string) error {
	gw := gateway.Addr()
	for _, e := range p.ends() {
		if _, err := p.CreatePair(link.Pair{Owner: owner, Type: kind, Host: e.host, Peer: e.peer, MTU: mtu, Open: true}); err != nil {
			return err
		}
		one := netip.PrefixFrom(e.addr.Addr(), 32)
		if err := p.Enter(e.peer, e.path(), link.Inner{Name: "eth0", Addrs: []netip.Prefix{one}, Gateway: gw}); err != nil {
			return err
		}
		dev, err := p.FindInside(e.path(), "eth0")
		if err != nil {
			return err
		}
		if err := p.Connect(e.host, []netip.Addr{e.addr.Addr()}, []netip.Addr{gw}, dev.MAC); err != nil {
			return err
		}
	}
	return nil
}

// bridged connects by a bridge with the gateway's address, as Docker's bridge networks do.
func (p plain) bridged() error {
	mac := net.HardwareAddr{0x02, 0x6d, 0x73, 0, 0, 1}
	_, err := p.CreateBridge(link.Bridge{Owner: owner, Name: "br0", MTU: mtu, MAC: mac, Gateways: []netip.Prefix{gateway}})
	if err != nil {
		return err
	}
	for _, e := range p.ends() {
		if _, err := p.CreatePair(link.Pair{Owner: owner, Type: link.TypeVeth, Host: e.host, Peer: e.peer, MTU: mtu}); err != nil {
			return err
		}
		if err := p.PlugPlain(e.host, "br0"); err != nil {
			return err
		}
		in := link.Inner{Name: "eth0", Addrs: []netip.Prefix{e.addr}, Gateway: gateway.Addr()}
		if err := p.Enter(e.peer, e.path(), in); err != nil {
			return err
		}
	}
	return nil
}

// slaves connects by slaves of a parent that leads nowhere. A third one, the host's, has the gateway's address. The
// VIP is its address too: an ipvlan above L2 delivers only to addresses that it knows.
func (p plain) slaves(kind link.Slave) error {
	if err := p.CreatePrivateParent(owner, "parent", "nowhere", mtu); err != nil {
		return err
	}
	kind.Owner, kind.Parent, kind.MTU = owner, "parent", mtu
	host := kind
	host.Name = "gw"
	if _, err := p.CreateHostSlave(host, []netip.Prefix{gateway, netip.PrefixFrom(plainVIP, 32)}); err != nil {
		return err
	}
	for _, e := range p.ends() {
		slave := kind
		slave.Name = e.peer
		if _, err := p.CreateSlave(slave); err != nil {
			return err
		}
		in := link.Inner{Name: "eth0", Addrs: []netip.Prefix{e.addr}, Gateway: gateway.Addr()}
		if err := p.Enter(e.peer, e.path(), in); err != nil {
			return err
		}
	}
	return nil
}
