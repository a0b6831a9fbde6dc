// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/mustang-net/mustang/drift"
)

// Look has the methods of a [Datapath] that change something, and tells what they would change instead of doing it.
type Look struct {
	*Datapath
	report drift.Report
}

// Look tells report what methods would change that are called on what it returns.
func (d *Datapath) Look(report drift.Report) *Look { return &Look{d, report} }

// entry compares an entry of a map with what is wanted.
func entry[K, V any](l *Look, name, what string, key K, want V) error {
	what = "mst_" + name + " " + what
	var got V
	err := l.maps[name].Lookup(&key, &got)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		l.report.Missing(what, "an entry")
		return nil
	}
	if err != nil {
		return fmt.Errorf("read mst_%s: %w", name, err)
	}
	if wanted, found := fieldsThatDiffer(want, got); wanted != "" {
		l.report.Differs(what, wanted, found)
	}
	return nil
}

// gone tells of an entry that should not be.
func gone[K, V any](l *Look, name, what string, key K, _ V) error {
	var got V
	err := l.maps[name].Lookup(&key, &got)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read mst_%s: %w", name, err)
	}
	l.report.Leftover("mst_"+name+" "+what, "an entry")
	return nil
}

// fieldsThatDiffer writes the fields of two values in which they differ: network=2, mac=02:…
func fieldsThatDiffer(want, got any) (wanted, found string) {
	w, g := reflect.ValueOf(want), reflect.ValueOf(got)
	var left, right []string
	for i := range w.NumField() {
		f := w.Type().Field(i)
		if !f.IsExported() || strings.HasPrefix(f.Name, "Pad") || w.Field(i).Interface() == g.Field(i).Interface() {
			continue
		}
		name := strings.ToLower(f.Name)
		left = append(left, name+"="+fieldText(w.Field(i).Interface()))
		right = append(right, name+"="+fieldText(g.Field(i).Interface()))
	}
	return strings.Join(left, " "), strings.Join(right, " ")
}

func fieldText(v any) string {
	switch v := v.(type) {
	case mstAddr:
		if v == (mstAddr{}) {
			return "none"
		}
		return v.ip().String()
	case [6]uint8:
		return net.HardwareAddr(v[:]).String()
	}
	return fmt.Sprint(v)
}

// PutEndpoint compares the entry of an address.
func (l *Look) PutEndpoint(e Endpoint) error {
	return entry(l, "endpoints", e.Addr.String(), addrOf(e.Addr), e.value())
}

// DeleteEndpoint tells of an address that should have no entry.
func (l *Look) DeleteEndpoint(addr netip.Addr) error {
	return gone(l, "endpoints", addr.String(), addrOf(addr), mstEndpoint{})
}

// DeleteHostAddr is DeleteEndpoint for one of the host's.
func (l *Look) DeleteHostAddr(addr netip.Addr) error { return l.DeleteEndpoint(addr) }

// PutInterface compares the entry of a host end.
func (l *Look) PutInterface(i Interface) error {
	return entry(l, "interfaces", device(i.IfIndex), uint32(i.IfIndex), i.value())
}

// DeleteInterface tells of a host end that should have no entry.
func (l *Look) DeleteInterface(ifindex int) error {
	return gone(l, "interfaces", device(ifindex), uint32(ifindex), mstInterface{})
}

// PutUplink compares the entry of an uplink.
func (l *Look) PutUplink(u Uplink) error {
	return entry(l, "uplinks", device(u.IfIndex), uint32(u.IfIndex), mstUplink{Snat4: addrOf(u.SNAT4), Snat6: addrOf(u.SNAT6)})
}

// DeleteUplink tells of a device that should lead nowhere out.
func (l *Look) DeleteUplink(ifindex int) error {
	return gone(l, "uplinks", device(ifindex), uint32(ifindex), mstUplink{})
}

// PutSandbox compares a sandbox. That it is tracked no longer is as it should be: its listeners found no room.
func (l *Look) PutSandbox(s Sandbox) error {
	found, known, err := l.Sandbox(s.Cookie)
	if err != nil {
		return err
	}
	if known {
		s.Tracked = found.Tracked
	}
	return entry(l, "sandboxes", fmt.Sprintf("netns cookie %d", s.Cookie), mstSandboxKey{Cookie: s.Cookie}, s.value())
}

// PutMember compares a membership.
func (l *Look) PutMember(cookie uint64, network uint32) error {
	return entry(l, "sandboxes", member(cookie, network), mstSandboxKey{Cookie: cookie, Network: network}, mstSandbox{})
}

// DeleteMember tells of a membership that should not be.
func (l *Look) DeleteMember(cookie uint64, network uint32) error {
	return gone(l, "sandboxes", member(cookie, network), mstSandboxKey{Cookie: cookie, Network: network}, mstSandbox{})
}

func member(cookie uint64, network uint32) string {
	if network == 0 {
		return fmt.Sprintf("netns cookie %d", cookie)
	}
	return fmt.Sprintf("netns cookie %d in network %d", cookie, network)
}

// device is a device as entries of maps know it.
func device(ifindex int) string { return fmt.Sprintf("ifindex %d", ifindex) }

// Load changes nothing: programs of a process that only looks are in no link, so that each would seem to be of another build.
func (*Look) Load() error { return nil }

// ProgramFD is of no use to who only looks.
func (*Look) ProgramFD(string) int { return 0 }

// RenameLXC changes nothing.
func (l *Look) RenameLXC(string, string) error { return nil }

// DetachLXC tells of links that no device of ours explains.
func (l *Look) DetachLXC(ifname string) error {
	for _, name := range lxcPrograms {
		pin := l.lxcPin(ifname, name)
		if _, err := os.Lstat(pin); err == nil {
			l.report.Leftover("pin "+pin, "a link")
		}
	}
	return nil
}

// AttachLXC compares the links of a device in the calling thread's namespace, and what runs before them.
func (l *Look) AttachLXC(ifname string, ifindex int, end End) error {
	for name, at := range lxcHooks[end] {
		what := fmt.Sprintf("program %s on %s", name, ifname)
		first, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
		if lacksTCX(err) {
			return ErrNoTCX
		}
		if err != nil {
			return fmt.Errorf("look at the programs of %s: %w", ifname, err)
		}
		l.looksFirst(what, l.lxcPin(ifname, name), first)
		l.attached(what, l.lxcPin(ifname, name), name, target{ifindex: ifindex})
	}
	return nil
}

// looksFirst tells of a foreign program that runs before ours, which a start leaves where it is.
func (l *Look) looksFirst(what, pin string, found *link.QueryResult) {
	ours, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return // which is told of
	}
	defer ours.Close()
	info, err := ours.Info()
	if err != nil || len(found.Programs) == 0 || found.Programs[0].ID == info.Program {
		return
	}
	l.report(drift.Difference{
		What: what, Wanted: "to be the first program", Found: fmt.Sprintf("program %d runs before it", found.Programs[0].ID),
		Do: fmt.Sprintf("find out whose `bpftool prog show id %d` is, and remove it", found.Programs[0].ID),
	})
}

// AttachSock compares the socket hooks.
func (l *Look) AttachSock(cgroup string) error {
	id, err := cgroupID(cgroup)
	if err != nil {
		return err
	}
	for name := range sockHooks {
		l.attached("program "+name+" at the cgroup "+cgroup, filepath.Join(l.dir, "mst_link_"+name), name, target{cgroup: id})
	}
	return nil
}

// attached compares a pinned link.
func (l *Look) attached(what, pin, name string, at target) {
	found, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		l.report.Missing(what, "a link at "+pin)
		return
	}
	if err != nil {
		l.report.Differs(what, "a link at "+pin, err.Error())
		return
	}
	defer found.Close()
	info, err := found.Info()
	if err != nil {
		l.report.Differs(what, "a link at "+pin, err.Error())
		return
	}
	if stale, _ := elsewhere(found, at); stale || detached(info) {
		l.report.Differs(what, "attached", "detached, or attached elsewhere")
		return
	}
	prog, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		l.report.Differs(what, "the program "+name, err.Error())
		return
	}
	defer func() { _ = prog.Close() }() // only looked at
	if is, err := prog.Info(); err == nil && is.Name != name {
		l.report.Differs(what, "the program "+name, "the program "+is.Name)
	}
	if l.lxc != nil && l.build(name) != info.Program {
		l.report.Differs(what, "the program of this build", "one of another build")
	}
}

// detached tells whether a link leads to nothing any more.
func detached(info *link.Info) bool {
	if at := info.TCX(); at != nil {
		return at.Ifindex == 0
	}
	if at := info.Cgroup(); at != nil {
		return at.CgroupId == 0
	}
	return false
}

// build is the kernel's id of a program as this process has loaded it, 0 if it does not tell.
func (d *Datapath) build(name string) ebpf.ProgramID {
	for _, c := range []*ebpf.Collection{d.lxc, d.host, d.sock} {
		if p := c.Programs[name]; p != nil {
			if info, err := p.Info(); err == nil {
				id, _ := info.ID()
				return id
			}
		}
	}
	return 0
}
