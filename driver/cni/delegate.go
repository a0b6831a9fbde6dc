// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/link"
)

// ofDelegate tells what the IPAM plugin was to do. Errors of its own have their codes; else it could not be run.
func (c *conf) ofDelegate(what string, err error) error {
	if err == nil {
		return nil
	}
	return invalid{fmt.Errorf("have the IPAM plugin %q %s: %w", c.IPAM.Type, what, err)}
}

// delegate lets the IPAM plugin of the configuration hand out addresses.
func delegate(ctx context.Context, c *conf, args *skel.CmdArgs, a *Attachment) error {
	done := func() error { return nil }
	if c.IPAM.Type == ipamDHCP {
		var err error
		if done, err = makeStandIn(c, a); err != nil {
			return err
		}
	}
	got, err := invoke.DelegateAdd(ctx, c.IPAM.Type, args.StdinData, nil)
	if err = errors.Join(c.ofDelegate("hand out addresses", err), done()); err != nil {
		return err
	}
	r, err := types100.GetResult(got)
	if err != nil {
		return fmt.Errorf("read what the plugin %s answers: %w", c.IPAM.Type, err)
	}
	c.fromIPAM = r.DNS
	for _, ip := range r.IPs {
		p, ok := prefixOf(&ip.Address)
		if !ok {
			continue
		}
		g := Given{Address: p}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			g.Gateway = gw.Unmap()
		}
		a.Given = append(a.Given, g)
	}
	a.hopsOf(r.Routes)
	return nil
}

// delegateDelFor is a DEL of the IPAM plugin for another attachment than the call is about, whose sandbox is gone.
func delegateDelFor(ctx context.Context, c *conf, args *skel.CmdArgs, a Attachee) error {
	plugin, err := invoke.FindInPath(c.IPAM.Type, filepath.SplitList(args.Path))
	if err != nil {
		return err
	}
	return invoke.ExecPluginWithoutResult(ctx, plugin, args.StdinData, &invoke.Args{
		Command: "DEL", ContainerID: a.Container, IfName: a.IfName, Path: args.Path,
	}, nil)
}

// hopsOf takes the routes of an IPAM plugin; without a router they go by the gateway of their family.
func (a *Attachment) hopsOf(routes []*types.Route) {
	for _, route := range routes {
		to, ok := prefixOf(&route.Dst)
		if !ok {
			continue
		}
		hop := RouteTo{To: to}
		if via, ok := netip.AddrFromSlice(route.GW); ok {
			hop.Via = via.Unmap()
		}
		for _, g := range a.Given {
			if !hop.Via.IsValid() && g.Gateway.IsValid() && g.Gateway.Is4() == to.Addr().Is4() {
				hop.Via = g.Gateway
			}
		}
		if hop.Via.IsValid() {
			a.Hops = append(a.Hops, hop)
		}
	}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

// standIn is whose a device is that stands in for the endpoint's.
func (k Key) standIn() string { return "dhcp:" + k.endpoint() }

// makeStandIn gives the sandbox a device with the MAC that the endpoint's will have, on which a DHCP server can be asked: the
// endpoint's own is made when its address is known. The function that is returned removes it.
func makeStandIn(c *conf, a *Attachment) (done func() error, err error) {
	o, err := driver.ParseOptions(c.options)
	if err != nil {
		return nil, invalid{err}
	}
	if o.Mode != driver.ModeMacvlan || o.Parent == "" {
		return nil, invalidf("ipam: with type dhcp the network %s needs a LAN with a server of its own: use mode=macvlan with parent=DEVICE", a.Network)
	}
	if a.MAC == "" {
		mac := make(net.HardwareAddr, 6)
		_, _ = rand.Read(mac)        // never fails (crypto/rand)
		mac[0] = mac[0]&^0x01 | 0x02 // of one device, locally administered
		a.MAC = mac.String()
	}
	mac, err := net.ParseMAC(a.MAC)
	if err != nil {
		return nil, invalid{err}
	}
	const idBytes = 11
	var h link.Host
	owner, name := a.standIn(), "msd"+a.endpoint()[:idBytes]
	if err := h.RemoveInside(a.Sandbox, owner); err != nil { // of a call that was killed
		return nil, err
	}
	if _, err := h.CreateSlave(link.Slave{Owner: owner, Name: name, Parent: o.Parent, Type: o.Mode, Mode: o.MacvlanMode, MAC: mac}); err != nil {
		return nil, err
	}
	if err := h.MoveInto(name, a.Sandbox, a.IfName); err != nil {
		err = errors.Join(err, h.Delete(name, owner))
		if errors.Is(err, link.ErrDeviceExists) {
			err = conflict{err}
		}
		return nil, err
	}
	return func() error { return h.RemoveInside(a.Sandbox, owner) }, nil
}
