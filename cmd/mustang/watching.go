// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"net/netip"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/monitor"
)

// watchDatapath makes the hub that tells of the datapath's events, with the names that names gives.
func watchDatapath(d *bpf.Datapath, names func() (monitor.Names, error)) *monitor.Hub {
	return monitor.New(monitor.Source{
		Watch: func() (monitor.Reader, error) { return d.Watch() },
		Lost:  d.LostEvents,
		Names: names,
	})
}

// Monitor implements [api.Host].
func (h *host) Monitor(ctx context.Context, filter monitor.Filter, tell func(monitor.Event) error) error {
	if h.daemon {
		return h.events.Watch(ctx, filter, tell)
	}
	// The state's lock must not keep a daemon from starting, nor other commands waiting: names are those of now.
	names, err := h.names()
	if err != nil {
		return err
	}
	datapath, err := bpf.Open(h.cfg.BPFFS)
	if err != nil {
		return err
	}
	defer datapath.Close()
	if err := h.close(); err != nil {
		return err
	}
	*h = host{}
	return watchDatapath(datapath, func() (monitor.Names, error) { return names, nil }).Watch(ctx, filter, tell)
}

// names are what addresses and ids mean now.
func (h *host) names() (monitor.Names, error) {
	n := monitor.Names{
		Ends: map[netip.Addr]monitor.End{}, Services: map[netip.Addr]monitor.End{}, Sandbox: map[uint64]monitor.End{},
		Device: func(ifindex int) string {
			name, err := h.links.Name(ifindex)
			if err != nil {
				return "" // it is gone
			}
			return name
		},
	}
	hosts, err := h.links.HostAddrs()
	if err != nil {
		return n, err
	}
	for _, a := range hosts {
		n.Ends[a] = monitor.End{Container: "host"}
	}
	for _, a := range []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})} {
		n.Ends[a] = monitor.End{Container: "host"}
	}
	if cookie, err := h.links.Cookie(""); err == nil {
		n.Sandbox[cookie] = monitor.End{Container: "host"}
	}
	networks := map[string]string{}
	for _, network := range h.driver.Networks() {
		networks[network.ID] = cmp.Or(network.Name, network.ID)
	}
	for _, e := range h.driver.Endpoints() {
		end := monitor.End{Container: h.services.ContainerOf(e.ID), Network: networks[e.NetworkID]}
		for _, a := range []netip.Addr{e.IPv4.Addr(), e.IPv6.Addr()} {
			if a.IsValid() {
				n.Ends[a] = end
			}
		}
		if e.Cookie != 0 {
			if _, several := n.Sandbox[e.Cookie]; several {
				end.Network = "" // it is not known which of its networks a socket asks through
			}
			n.Sandbox[e.Cookie] = end
		}
	}
	for _, s := range h.services.List() {
		for _, f := range s.Frontends {
			n.Services[f.Addr] = monitor.End{Service: s.Name, Network: s.Network}
		}
	}
	return n, nil
}
