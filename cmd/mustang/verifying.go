// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/drift"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/driver/ports"
	"github.com/mustang-net/mustang/nft"
	"github.com/mustang-net/mustang/service/dns"
)

// Verify implements [api.Host]. One at a time: looks are long, and repairs must not meet.
func (h *host) Verify(ctx context.Context, repair bool) (api.Verification, error) {
	h.verifying.Lock()
	defer h.verifying.Unlock()
	v := api.Verification{Differences: []drift.Difference{}, Mended: []drift.Difference{}, Notes: h.notes()}
	before, err := h.differences(ctx)
	if err != nil {
		return v, err
	}
	v.Differences = append(v.Differences, before...)
	if !repair {
		return v, nil
	}
	repaired := h.repair()
	after, err := h.differences(ctx)
	if err := errors.Join(repaired, err); err != nil {
		return v, err
	}
	v.Differences = append(v.Differences[:0], after...)
	for _, d := range before {
		if !slices.ContainsFunc(after, d.Same) {
			v.Mended = append(v.Mended, d)
		}
	}
	return v, nil
}

// looks are the pauses between looks, at all of which a difference must be there to be one. While containers come and go, what is
// wanted is for moments ahead of the kernel or behind it: an engine takes a device out of a sandbox after it has said that the endpoint
// leaves, and what runtimes of CNI do not tell is found once in sweepEvery. The others are for what goes and comes with containers, as
// a gateway's address does, which may be at the same point at two looks.
var looks = []time.Duration{sweepEvery + 500*time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond}

// differences are those that last.
func (h *host) differences(ctx context.Context) ([]drift.Difference, error) {
	found, err := h.look()
	for _, pause := range looks {
		if err != nil || len(found) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
		if h.daemon { // which follows the host's addresses a little later
			if err := h.driver.SyncUplinks(); err != nil { // that is then a difference
				h.log.WithError(err).Warn("follow the uplinks")
			}
		}
		var now []drift.Difference
		now, err = h.look()
		found = slices.DeleteFunc(found, func(d drift.Difference) bool { return !slices.ContainsFunc(now, d.Same) })
	}
	return found, err
}

// look asks each part what a start would change.
func (h *host) look() (out []drift.Difference, err error) {
	report := drift.Report(func(d drift.Difference) {
		if !slices.Contains(out, d) { // two networks may want the same
			out = append(out, d)
		}
	})
	datapath := h.datapath.Look(report)
	stage := driver.Stage{Links: link.NewLook(report), Datapath: datapath, Tables: nft.Look{Tables: h.tables, Report: report}}
	if h.daemon {
		stage.Resolver = lookResolver{h.resolver, sandboxNetwork{h.links, h.datapath}, report}
		stage.Ports = ports.Look{Holder: h.ports, Report: report}
	}
	err = errors.Join(datapath.Pins(), h.hook(datapath), h.driver.Rehearse(stage), h.services.Look(report))
	h.eachSubnet(func(_ driver.Network, subnet netip.Prefix, inUse map[netip.Addr]bool) {
		for _, a := range h.ipam.Unused(subnet, inUse, leaseGrace) {
			report(drift.Difference{
				What: "lease " + a.String(), Wanted: "an endpoint that has it", Found: drift.Nothing,
				Do: "the daemon releases it once the engine has twice told that it does not know it",
			})
		}
	})
	return out, err
}

// repair does what a start does, as far as it can.
func (h *host) repair() error {
	h.tables.Doubt()
	h.datapath.ForgetLinks()
	if err := h.connect(); err != nil {
		return err
	}
	restored := h.driver.Restore()
	h.checkTables()
	return errors.Join(restored, h.services.Reconcile())
}

// notes are what a mode cannot keep a container from.
func (h *host) notes() []drift.Difference {
	out := []drift.Difference{}
	for _, n := range h.driver.Networks() {
		if n.Options.Mode != driver.ModeMacvlan && n.Options.Mode != driver.ModeIPvlan {
			continue
		}
		used := slices.ContainsFunc(h.driver.Endpoints(), func(e driver.Endpoint) bool { return e.NetworkID == n.ID })
		if !used {
			continue
		}
		found := fmt.Sprintf("mode %s, whose programs a container with CAP_NET_RAW or CAP_NET_ADMIN can send past", n.Options.Mode)
		if flag := n.Options.IPvlanFlag; flag != "" && flag != "bridge" { // the host has no slave there, by which verify would see it
			found += fmt.Sprintf("; with CAP_NET_ADMIN it can take ipvlan_flag=%s away for all containers of the parent", flag)
		}
		out = append(out, drift.Difference{
			What: "network " + cmp.Or(n.Name, n.ID), Wanted: "containers that send as themselves alone",
			Found: found,
			Do:    "start its containers with --cap-drop NET_RAW, or use mode veth, bridge or netkit", Note: true,
		})
	}
	return out
}

// lookResolver tells in which sandboxes names are not answered that should be.
type lookResolver struct {
	server  *dns.Server
	network sandboxNetwork
	report  drift.Report
}

func (r lookResolver) Add(cookie uint64, path string) (uint16, error) {
	if port, ok := r.server.Port(cookie); ok {
		return port, nil
	}
	d := drift.Difference{What: "names in the sandbox " + path, Wanted: "our resolver listens", Found: drift.Nothing, Do: drift.Repair}
	udp, tcp, err := r.network.Listen(dns.Sandbox{Cookie: cookie, Key: path})
	switch {
	case err == nil:
		_, _ = udp.Close(), tcp.Close() // it was to see whether it can
	case errors.Is(err, unix.EADDRNOTAVAIL): // a repair cannot either: lo is its runtime's
		d.Found, d.Do = "its device lo is down", "set lo up in it, then "+drift.Repair
	}
	r.report(d)
	return 0, drift.ErrReported
}

func (lookResolver) Remove(uint64) {}
