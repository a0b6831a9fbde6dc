// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/mustang-net/mustang/bpf"
)

// datapath is the pinned maps and links in miniature.
type datapath struct {
	fault  *fault
	kernel *kernel
	noTCX  bool

	mu         sync.Mutex
	endpoints  map[netip.Addr]bpf.Endpoint
	interfaces map[int]bpf.Interface
	sandboxes  map[uint64]bpf.Sandbox
	members    map[uint64]map[uint32]bool
	uplinks    map[int]bpf.Uplink
	attached   map[string]int // pins: name → ifindex that the programs are on
}

func newDatapath(f *fault, k *kernel) *datapath {
	d := &datapath{fault: f, kernel: k}
	d.wipe()
	return d
}

// wipe is what a reboot, or an operator who unmounts bpffs, leaves once a daemon has started.
func (d *datapath) wipe() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endpoints, d.interfaces = map[netip.Addr]bpf.Endpoint{}, map[int]bpf.Interface{}
	d.sandboxes = map[uint64]bpf.Sandbox{hostCookie: {Cookie: hostCookie, SocketLB: true, AllNetworks: true}}
	d.uplinks = map[int]bpf.Uplink{}
	d.members, d.attached = map[uint64]map[uint32]bool{}, map[string]int{}
}

func (d *datapath) PutEndpoint(e bpf.Endpoint) error {
	if err := d.fault.hit("put endpoint"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endpoints[e.Addr] = e
	return nil
}

func (d *datapath) DeleteEndpoint(a netip.Addr) error {
	if err := d.fault.hit("delete endpoint"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.endpoints, a)
	return nil
}

func (d *datapath) Endpoints() ([]bpf.Endpoint, error) {
	if err := d.fault.hit("endpoints"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.endpoints)), nil
}

func (d *datapath) PutInterface(i bpf.Interface) error {
	if err := d.fault.hit("put interface"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.interfaces[i.IfIndex] = i
	return nil
}

func (d *datapath) DeleteInterface(index int) error {
	if err := d.fault.hit("delete interface"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.interfaces, index)
	return nil
}

func (d *datapath) Interfaces() ([]int, error) {
	if err := d.fault.hit("interfaces"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.interfaces)), nil
}

func (d *datapath) PutSandbox(s bpf.Sandbox) error {
	if err := d.fault.hit("put sandbox"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sandboxes[s.Cookie] = s
	return nil
}

func (d *datapath) Sandbox(cookie uint64) (bpf.Sandbox, bool, error) {
	if err := d.fault.hit("sandbox"); err != nil {
		return bpf.Sandbox{}, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.sandboxes[cookie]
	return s, ok, nil
}

func (d *datapath) PutMember(cookie uint64, network uint32) error {
	if err := d.fault.hit("put member"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.members[cookie] == nil {
		d.members[cookie] = map[uint32]bool{}
	}
	d.members[cookie][network] = true
	return nil
}

func (d *datapath) DeleteMember(cookie uint64, network uint32) error {
	if err := d.fault.hit("delete member"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if network == 0 {
		delete(d.sandboxes, cookie)
		return nil
	}
	delete(d.members[cookie], network)
	if len(d.members[cookie]) == 0 {
		delete(d.members, cookie)
	}
	return nil
}

func (d *datapath) Sandboxes() (map[uint64][]uint32, error) {
	if err := d.fault.hit("sandboxes"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[uint64][]uint32{}
	for cookie := range d.sandboxes {
		out[cookie] = nil
	}
	for cookie, networks := range d.members {
		out[cookie] = slices.Collect(maps.Keys(networks))
	}
	return out, nil
}

func (d *datapath) AttachLXC(name string, index int, _ bpf.End) error {
	if err := d.fault.hit("attach"); err != nil {
		return err
	}
	if d.noTCX {
		return fmt.Errorf("attach to %s: %w", name, bpf.ErrNoTCX)
	}
	d.kernel.mu.Lock()
	dev := d.kernel.devices[name]
	d.kernel.mu.Unlock()
	if dev == nil || dev.index != index {
		return errors.New("attach: no such device")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for other, at := range d.attached {
		if at == index && other != name {
			return fmt.Errorf("attach to %s: %w: by %s", name, fs.ErrExist, other)
		}
	}
	d.attached[name] = index
	return nil
}

func (d *datapath) RenameLXC(from, to string) error {
	if err := d.fault.hit("rename"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if index, ok := d.attached[from]; ok {
		d.attached[to] = index
		delete(d.attached, from)
	}
	return nil
}

func (d *datapath) DetachLXC(name string) error {
	if err := d.fault.hit("detach"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.attached, name)
	return nil
}

func (d *datapath) Load() error { return d.fault.hit("load") }

func (d *datapath) AttachedLXC() ([]string, error) {
	if err := d.fault.hit("attached"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.attached)), nil
}

func (d *datapath) ProgramFD(string) int { return 3 }
