// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// Status implements [api.Host].
func (h *host) Status(context.Context) (api.Status, error) {
	version, _ := versionAndCommit()
	watcher := h.statusWatcher()
	s := api.Status{Version: version, Daemon: h.daemon, Ready: h.daemon && watcher.State != "degraded"} // as its line says, whatever happens meanwhile
	for _, sub := range []api.Subsystem{
		h.statusKernel(), h.statusAttached(), h.statusDatapath(), h.statusFlows(), h.statusDrops(), h.statusEvents(), h.statusUplinks(), h.statusServices(),
		h.statusDriver(), h.statusTables(), h.statusIPAM(), h.statusNames(), watcher,
	} {
		s.Ready = s.Ready && sub.State != "failed"
		s.Subsystems = append(s.Subsystems, sub)
	}
	return s, nil
}

// knows says that names are followed: there is a daemon, and it knows all containers.
func (h *host) knows() bool {
	return h.daemon && (h.cfg.DockerSocket == "" || h.watcher.synced.Load())
}

func (h *host) statusDatapath() api.Subsystem {
	fill, err := h.datapath.Fill()
	if err != nil {
		return failed("datapath", err)
	}
	return fillOf("datapath", fill)
}

// fillOf lists how full maps are. One that is nearly full is about to refuse what is new.
func fillOf(name string, fill []bpf.Fill) api.Subsystem {
	s := api.Subsystem{Name: name, State: "ok"}
	var parts []string
	for _, f := range fill {
		parts = append(parts, fmt.Sprintf("%s %d/%d", f.Name, f.Entries, f.Max))
		if f.Entries > f.Max/10*9 {
			s.State = "degraded"
		}
	}
	s.Detail = strings.Join(parts, ", ")
	return s
}

// statusKernel says what the kernel has, and what follows for how packets and connections are handled.
func (h *host) statusKernel() api.Subsystem {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return failed("kernel", fmt.Errorf("read the kernel's version: %w", err))
	}
	parts := []string{unix.ByteSliceToString(uts.Release[:])}
	if bpf.HasTCX() {
		parts = append(parts, "programs stay with their devices (TCX)")
	} else {
		parts = append(parts, "programs are filters (clsact: no TCX before Linux 6.6)")
	}
	if err := h.links.CheckPair(link.TypeNetkit); err == nil {
		parts = append(parts, "netkit")
	} else {
		parts = append(parts, "no netkit")
	}
	return api.Subsystem{Name: "kernel", State: "ok", Detail: strings.Join(parts, ", ")}
}

// statusAttached says where the programs are, and so how services are reached.
func (h *host) statusAttached() api.Subsystem {
	devices, err := h.datapath.AttachedLXC()
	if err != nil {
		return failed("attached", err)
	}
	hooks, all := h.datapath.Hooks()
	s := api.Subsystem{Name: "attached", State: "ok", Detail: fmt.Sprintf("%d of %d socket hooks: ", hooks, all)}
	switch {
	case hooks == all:
		s.Detail += "services are chosen when sockets connect"
	case h.daemon:
		s.State = "degraded"
		s.Detail += "some services are chosen packet by packet (mustang verify tells more)"
	default:
		s.Detail += "services are chosen packet by packet until the daemon has started once"
	}
	s.Detail += fmt.Sprintf(", programs on %d devices", len(devices))
	return s
}

// statusFlows says how full the maps are that make room by themselves.
func (h *host) statusFlows() api.Subsystem {
	fill, err := h.datapath.Caches()
	if err != nil {
		return failed("flows", err)
	}
	s := fillOf("flows", fill)
	s.State = "ok" // the oldest go
	return s
}

// statusEvents says who watches, and what could not be told.
func (h *host) statusEvents() api.Subsystem {
	lost, err := h.datapath.LostEvents()
	if err != nil {
		return failed("events", err)
	}
	watched, err := h.datapath.Watched()
	if err != nil {
		return failed("events", err)
	}
	s := api.Subsystem{Name: "events", State: "off", Detail: "nobody watches"}
	if watched {
		s.State, s.Detail = "ok", fmt.Sprintf("%d watchers", h.events.Watchers())
		if h.events.Watchers() == 0 {
			s.Detail = "another process watches"
		}
	}
	s.Detail += fmt.Sprintf(", %d lost", lost)
	return s
}

// statusNames says where our resolver answers.
func (h *host) statusNames() api.Subsystem {
	if h.resolver == nil {
		return api.Subsystem{Name: "dns", State: "off", Detail: "the engine's resolver answers"}
	}
	return api.Subsystem{Name: "dns", State: "ok", Detail: fmt.Sprintf("%d sandboxes", h.resolver.Sandboxes())}
}

func (h *host) statusDrops() api.Subsystem {
	drops, err := h.datapath.Drops()
	if err != nil {
		return failed("drops", err)
	}
	for reason, packets := range h.tables.Drops() {
		drops = append(drops, bpf.Drop{Reason: reason, Packets: packets})
	}
	totals := map[string]uint64{}
	var order []string
	for _, d := range drops {
		if d.Packets == 0 {
			continue
		}
		if totals[d.Reason] == 0 {
			order = append(order, d.Reason)
		}
		totals[d.Reason] += d.Packets
	}
	var parts []string
	for _, reason := range order {
		parts = append(parts, fmt.Sprintf("%s %d", reason, totals[reason]))
	}
	return api.Subsystem{Name: "drops", State: "ok", Detail: cmp.Or(strings.Join(parts, ", "), "none")}
}

func (h *host) statusUplinks() api.Subsystem {
	uplinks, err := h.datapath.Uplinks()
	if err != nil {
		return failed("uplinks", err)
	}
	var parts []string
	for _, u := range uplinks {
		name, err := h.links.Name(u.IfIndex)
		if err != nil {
			name = strconv.Itoa(u.IfIndex) // it is going
		}
		for _, a := range []netip.Addr{u.SNAT4, u.SNAT6} {
			if a.IsValid() {
				name += " " + a.String()
			}
		}
		parts = append(parts, name)
	}
	slices.Sort(parts)
	return api.Subsystem{Name: "uplinks", State: "ok", Detail: cmp.Or(strings.Join(parts, ", "), "none: containers do not leave the host")}
}

func (h *host) statusServices() api.Subsystem {
	if err := h.services.Err(); err != nil {
		return failed("services", err)
	}
	return api.Subsystem{Name: "services", State: "ok", Detail: fmt.Sprintf("%d services", len(h.services.List()))}
}

func (h *host) statusDriver() api.Subsystem {
	s := api.Subsystem{Name: "driver", State: "ok", Detail: fmt.Sprintf("%d networks, %d endpoints",
		len(h.driver.Networks()), len(h.driver.Endpoints()))}
	if h.driver.Orphaned() {
		s.State = "degraded"
		s.Detail += "; endpoints of a lost state go on unmanaged: make their networks and containers anew"
	}
	return s
}

func (h *host) statusTables() api.Subsystem {
	state := h.tables.State()
	s := api.Subsystem{Name: "nftables", State: "ok", Detail: fmt.Sprintf("%d sandboxes, %d devices", state.Sandboxes, state.Ends)}
	if state.Err != nil {
		s.State, s.Detail = "degraded", s.Detail+"; "+state.Err.Error()
	}
	return s
}

func (h *host) statusIPAM() api.Subsystem {
	s := api.Subsystem{Name: "ipam", State: "ok"}
	pools, leases, fullest, most := h.ipam.Pools(), 0, "", 0.0
	for _, p := range pools {
		leases += p.Leases
		if used := p.Used(); used > most {
			fullest, most = p.Subnet.String(), used
		}
	}
	s.Detail = fmt.Sprintf("%d pools, %d leases", len(pools), leases)
	if fullest != "" {
		s.Detail += fmt.Sprintf(", the fullest %s with %.0f%%", fullest, 100*most)
	}
	if most > 0.9 {
		s.State = "degraded"
	}
	return s
}

func (h *host) statusWatcher() api.Subsystem {
	switch {
	case !h.daemon:
		return api.Subsystem{Name: "daemon", State: "off", Detail: "not running: the datapath goes on, Docker's changes wait"}
	case h.cfg.DockerSocket == "":
		return api.Subsystem{Name: "docker", State: "off", Detail: "docker_socket is off"}
	case !h.watcher.synced.Load():
		return api.Subsystem{Name: "docker", State: "degraded", Detail: "waiting for the engine at " + h.cfg.DockerSocket}
	}
	s := api.Subsystem{Name: "docker", State: "ok", Detail: "following the engine at " + h.cfg.DockerSocket}
	if last := h.watcher.last.Load(); last != 0 {
		s.Detail += fmt.Sprintf(", the last event %s ago, applied after %s",
			max(0, time.Since(time.Unix(0, last))).Round(time.Second), time.Duration(h.watcher.lag.Load()).Round(time.Millisecond))
	}
	return s
}

func failed(name string, err error) api.Subsystem {
	return api.Subsystem{Name: name, State: "failed", Detail: err.Error()}
}
