// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/mustang-net/mustang/driver/link"
)

// kernel is a kernel's devices, routes and namespaces in miniature.
type kernel struct {
	whileDeleting func() // runs once, while a device is removed
	whileListing  func() // runs once, while sandboxes are listed
	fault         *fault

	mu        sync.Mutex
	devices   map[string]*device
	netns     map[string]*netns // by path
	refused   map[netip.Prefix]bool
	slaves    map[string]link.InSandbox // by owner
	forwards6 error                     // of a host that does not
	lastIndex int
	lastNetns uint64
}

// hostCookie is the cookie of the namespace that the driver runs in.
const hostCookie = 1

type device struct {
	index    int
	owner    string // "" for a foreign one
	mac      net.HardwareAddr
	addrs    []netip.Addr
	master   string // bridge that it is a port of
	gateways []netip.Addr
	peerIn   string // path of the namespace that the peer was moved into
	clsact   bool   // ours
	forwards bool
	tc       bool       // an operator's
	sends    netip.Addr // of a device that leads out
}

type netns struct {
	cookie  uint64
	listens bool
	inside  map[string]link.Inside
	refused map[netip.Prefix]bool
}

func newKernel(f *fault) *kernel {
	k := &kernel{fault: f}
	k.boot()
	return k
}

// boot empties everything; ifindexes and cookies begin again.
func (k *kernel) boot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices, k.netns, k.refused = map[string]*device{}, map[string]*netns{}, map[netip.Prefix]bool{}
	k.lastIndex, k.lastNetns = 1, hostCookie
}

// addNetns makes a namespace at a path.
func (k *kernel) addNetns(path string) *netns {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastNetns++
	k.netns[path] = &netns{cookie: k.lastNetns, inside: map[string]link.Inside{}}
	return k.netns[path]
}

// removeNetns ends a namespace, and every pair with an end in it.
func (k *kernel) removeNetns(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.netns, path)
	maps.DeleteFunc(k.devices, func(_ string, d *device) bool { return d.peerIn == path })
}

// addForeign adds a device that is nobody's.
func (k *kernel) addForeign(name string) *device {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.add(name, "")
}

func (k *kernel) add(name, owner string) *device {
	k.lastIndex++
	k.devices[name] = &device{index: k.lastIndex, owner: owner, mac: net.HardwareAddr{2, 0, 0, 0, 0, byte(k.lastIndex)}}
	return k.devices[name]
}

// addPair puts a device with addresses into a namespace, its other end on the host.
func (k *kernel) addPair(path, inside, host string, addrs ...string) {
	outer := k.addForeign(host)
	k.mu.Lock()
	defer k.mu.Unlock()
	outer.peerIn = path
	in := link.Inside{Device: link.Device{Index: 2, MAC: net.HardwareAddr{2, 0, 0, 0, 1, byte(outer.index)}}, Peer: outer.index}
	for _, a := range addrs {
		in.Addrs = append(in.Addrs, netip.MustParsePrefix(a))
	}
	k.netns[path].inside[inside] = in
}

// moveInto is what an engine does with the other end of a pair of ours.
func (k *kernel) moveInto(host, path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices[host].peerIn = path
}

func (k *kernel) has(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.devices[name] != nil
}

func (k *kernel) CheckPair(string) error { return k.fault.hit("check pair") }

func (k *kernel) CreatePair(v link.Pair) (link.Device, error) {
	if err := k.fault.hit("create pair"); err != nil {
		return link.Device{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[v.Host]
	if d == nil {
		d = k.add(v.Host, v.Owner)
	}
	if d.owner != v.Owner {
		return link.Device{}, errors.New("a device of that name is not this endpoint's")
	}
	return link.Device{Index: d.index, MAC: d.mac, MTU: v.MTU}, nil
}

func (k *kernel) CreateBridge(b link.Bridge) (link.Device, error) {
	if err := k.fault.hit("create bridge"); err != nil {
		return link.Device{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[b.Name]
	if d == nil {
		d = k.add(b.Name, b.Owner)
		d.mac = b.MAC
	}
	if d.owner != b.Owner {
		return link.Device{}, errors.New("there is a device of that name already")
	}
	d.gateways = nil
	for _, gw := range b.Gateways {
		d.gateways = append(d.gateways, gw.Addr())
	}
	return link.Device{Index: d.index, MAC: d.mac, MTU: b.MTU}, nil
}

func (k *kernel) Plug(port, bridge string, addrs []netip.Addr, _ net.HardwareAddr) error {
	if err := k.fault.hit("plug"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[port] == nil || k.devices[bridge] == nil {
		return fmt.Errorf("plug %s into %s: no such device", port, bridge)
	}
	k.devices[port].master = bridge
	for _, a := range addrs {
		if !slices.Contains(k.devices[bridge].addrs, a) {
			k.devices[bridge].addrs = append(k.devices[bridge].addrs, a)
		}
	}
	return nil
}

func (k *kernel) Unplug(bridge string, addrs []netip.Addr) error {
	if err := k.fault.hit("unplug"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.devices[bridge]; d != nil {
		d.addrs = slices.DeleteFunc(d.addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	}
	return nil
}

func (k *kernel) CreatePrivateParent(owner, name, peer string, _ int) error {
	if err := k.fault.hit("create private parent"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[name] == nil {
		k.add(name, owner)
	}
	return nil
}

func (k *kernel) CreateVLAN(name, owner string) (bool, error) {
	if err := k.fault.hit("create vlan"); err != nil {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[name] != nil || !strings.Contains(name, ".") {
		return false, nil
	}
	k.add(name, owner)
	return true, nil
}

func (k *kernel) Addrs(string) ([]netip.Prefix, error) {
	if err := k.fault.hit("addrs"); err != nil {
		return nil, err
	}
	return []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")}, nil
}

func (k *kernel) HasAddr(addr netip.Addr) (bool, error) {
	if err := k.fault.hit("has address"); err != nil {
		return false, err
	}
	return addr == netip.MustParseAddr("192.0.2.2"), nil
}

func (k *kernel) CheckParent(name string, _ int) error {
	if err := k.fault.hit("check parent"); err != nil {
		return err
	}
	if !k.has(name) {
		return fmt.Errorf("parent %s: there is no such device", name)
	}
	return nil
}

func (k *kernel) CreateSlave(s link.Slave) (link.Device, error) {
	if err := k.fault.hit("create slave"); err != nil {
		return link.Device{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[s.Parent] == nil {
		return link.Device{}, fmt.Errorf("find the parent %s: no such device", s.Parent)
	}
	d := k.devices[s.Name]
	if d == nil {
		d = k.add(s.Name, s.Owner)
		d.mac = s.MAC
		if s.Type == "ipvlan" {
			d.mac = k.devices[s.Parent].mac
		}
	}
	if d.owner != s.Owner {
		return link.Device{}, errors.New("there is a device of that name already")
	}
	return link.Device{Index: d.index, MAC: d.mac, MTU: s.MTU}, nil
}

func (k *kernel) CreateHostSlave(s link.Slave, addrs []netip.Prefix) (link.Device, error) {
	d, err := k.CreateSlave(s)
	if err != nil {
		return d, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices[s.Name].gateways = nil
	for _, a := range addrs {
		k.devices[s.Name].gateways = append(k.devices[s.Name].gateways, a.Addr())
	}
	return d, nil
}

func (k *kernel) Disconnect(name string, addrs []netip.Addr) error {
	if err := k.fault.hit("disconnect"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.devices[name]; d != nil {
		d.addrs = slices.DeleteFunc(d.addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	}
	return nil
}

func (k *kernel) Do(path string, fn func() error) error {
	if _, err := k.Cookie(path); err != nil {
		return err
	}
	return fn()
}

func (k *kernel) OwnInside(path, owner string) (link.Device, error) {
	if _, err := k.Cookie(path); err != nil {
		return link.Device{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, d := range k.devices {
		if d.owner == owner {
			return link.Device{Name: name, Index: d.index, MAC: d.mac}, nil
		}
	}
	return link.Device{}, link.ErrNoDevice
}

func (k *kernel) InSandboxes() (map[string]link.InSandbox, error) {
	if err := k.fault.hit("in sandboxes"); err != nil {
		return nil, err
	}
	if meanwhile := k.whileListing; meanwhile != nil {
		k.whileListing = nil
		meanwhile()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]link.InSandbox{}
	maps.Copy(out, k.slaves)
	for _, d := range k.devices {
		if d.owner != "" && d.peerIn != "" {
			out[d.owner] = link.InSandbox{}
		}
	}
	return out, nil
}

func (k *kernel) Delete(name, owner string) error {
	if err := k.fault.hit("delete"); err != nil {
		return err
	}
	if meanwhile := k.whileDeleting; meanwhile != nil {
		k.whileDeleting = nil
		meanwhile()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.devices[name]; d != nil && d.owner == owner {
		delete(k.devices, name)
	}
	return nil
}

func (k *kernel) Owned() (map[string]string, error) {
	if err := k.fault.hit("owned"); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]string{}
	for name, d := range k.devices {
		if d.owner != "" {
			out[name] = d.owner
		}
	}
	return out, nil
}

func (k *kernel) Cookie(path string) (uint64, error) {
	if err := k.fault.hit("cookie"); err != nil {
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if path == "" {
		return hostCookie, nil
	}
	n := k.netns[path]
	if n == nil {
		return 0, fmt.Errorf("read the cookie of the network namespace %q: %w", path, link.ErrNoNetns)
	}
	return n.cookie, nil
}

func (k *kernel) Listens(path string) (bool, error) {
	if err := k.fault.hit("listens"); err != nil {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.netns[path] != nil && k.netns[path].listens, nil
}

func (k *kernel) FindInside(path, name string) (link.Inside, error) {
	if err := k.fault.hit("find inside"); err != nil {
		return link.Inside{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.netns[path]
	if n == nil {
		return link.Inside{}, fmt.Errorf("look into the sandbox %s: %w", path, link.ErrNoNetns)
	}
	in, ok := n.inside[name]
	if !ok {
		return link.Inside{}, fmt.Errorf("look into the sandbox %s: find the device %s: %w", path, name, link.ErrNoDevice)
	}
	return in, nil
}

func (k *kernel) Name(index int) (string, error) {
	if err := k.fault.hit("name"); err != nil {
		return "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, d := range k.devices {
		if d.index == index {
			return name, nil
		}
	}
	return "", fmt.Errorf("find the device with index %d: no such device", index)
}

func (k *kernel) Find(name string) (link.Device, error) {
	if err := k.fault.hit("find"); err != nil {
		return link.Device{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[name]
	if d == nil {
		return link.Device{}, fmt.Errorf("find the device %s: %w", name, link.ErrNoDevice)
	}
	return link.Device{Name: name, Type: link.TypeVeth, Index: d.index, MAC: d.mac, MTU: 1500}, nil
}
