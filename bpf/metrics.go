// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"
)

// reasons explain every way in which the datapath refuses a packet or a connection.
var reasons = map[uint32][2]string{
	reasonMalformed:      {"malformed", "headers that are cut, or lie about lengths"},
	reasonVlan:           {"vlan", "tagged frame from a container"},
	reasonSpoofed:        {"spoofed", "the source is no address of the endpoint"},
	reasonIsolated:       {"isolated", "the destination is not in the sender's network"},
	reasonNoRoute:        {"no-route", "the destination is neither endpoint, VIP nor gateway"},
	reasonNoFragmentHead: {"no-fragment-head", "fragment of a flow whose head was not seen"},
	reasonNoService:      {"no-service", "port of a VIP that no service has"},
	reasonNoBackend:      {"no-backend", "service without a running backend"},
	reasonNotMember:      {"not-member", "VIP of a network the sandbox is not in"},
	reasonNoFlow:         {"no-flow", "mid-flow TCP segment without conntrack"},
	reasonCtFull:         {"ct-full", "conntrack could not be written"},
	reasonCtCollision:    {"ct-collision", "two flows of one client port with one reply tuple"},
	reasonNatFailed:      {"nat-failed", "the kernel refused a rewrite"},
	reasonMulticast:      {"multicast", "multicast and broadcast end at the endpoint"},
	reasonSnatFull:       {"snat-full", "no entry left for a masqueraded flow"},
	reasonSnatPorts:      {"snat-ports", "no source port left towards one server"},
	reasonSnatQuota:      {"snat-quota", "the endpoint has too many masqueraded flows"},
	reasonTtl:            {"ttl", "time to live exceeded on the way out"},
	reasonTooBig:         {"too-big", "larger than the MTU of the way out"},
	reasonOffHost:        {"off-host", "for a VIP or a loopback address, from outside of the host"},
	reasonSource:         {"source", "published port does not allow this source"},
}

// directions name where a refusal happened.
var directions = map[uint32]string{fromContainer: "from-container", toContainer: "to-container", socket: "socket"}

// Reasons lists the names of all reasons, as they are counted.
func Reasons() []string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(reasons)) {
		out = append(out, reasons[n][0])
	}
	return out
}

// Drop counts what was refused for one reason at one place.
type Drop struct {
	Reason    string
	Meaning   string
	Direction string // from-container, to-container or socket
	IfIndex   int    // 0 for sockets
	Packets   uint64
	Bytes     uint64
}

// Drops reads the counters, most packets first.
func (d *Datapath) Drops() ([]Drop, error) {
	var out []Drop
	var key mstMetricKey
	var perCPU []mstMetric
	entries := d.maps["metrics"].Iterate()
	for entries.Next(&key, &perCPU) {
		drop := Drop{Direction: directions[key.Dir], IfIndex: int(key.Ifindex)}
		drop.Reason, drop.Meaning = reasonText(key.Reason)
		for _, m := range perCPU {
			drop.Packets += m.Packets
			drop.Bytes += m.Bytes
		}
		out = append(out, drop)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read mst_metrics: %w", err)
	}
	slices.SortFunc(out, func(a, b Drop) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Reason, b.Reason), a.IfIndex-b.IfIndex)
	})
	return out, nil
}

// reasonText is the name of a reason, and what it means.
func reasonText(reason uint32) (name, meaning string) {
	if r, ok := reasons[reason]; ok {
		return r[0], r[1]
	}
	return fmt.Sprint(reason), "unknown to this build"
}

// Fill says how full a map is.
type Fill struct {
	Name    string // without prefix and version: "services"
	Entries int
	Max     int
}

// atOnce is how many entries are counted in one call: a cache may have 100,000.
const atOnce = 4096

// countEntries counts the entries of a map.
func countEntries(m *ebpf.Map) (n int, err error) {
	if t := m.Type(); t == ebpf.Hash || t == ebpf.LRUHash {
		return countBatches(m)
	}
	key, value := make([]byte, m.KeySize()), any(new([]byte))
	if m.Type() == ebpf.PerCPUHash {
		value = new([][]byte)
	}
	it := m.Iterate()
	for it.Next(&key, value) {
		n++
	}
	return n, it.Err()
}

func countBatches(m *ebpf.Map) (n int, err error) {
	room := func(size uint32) any {
		slice := reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]()))
		return reflect.MakeSlice(slice, atOnce, atOnce).Interface()
	}
	keys, values := room(m.KeySize()), room(m.ValueSize())
	var at ebpf.MapBatchCursor
	for {
		got, err := m.BatchLookup(&at, keys, values, nil)
		n += got
		if errors.Is(err, ebpf.ErrKeyNotExist) { // that was the last one
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// Fill counts the entries of the maps that desired state fills, and of masqueraded flows. Caches, which make
// room by themselves, are left out, and so are the host's own addresses, which no desired state has.
func (d *Datapath) Fill() ([]Fill, error) {
	endpoints, err := d.Endpoints()
	if err != nil {
		return nil, err
	}
	hosts := 0
	for _, e := range endpoints {
		if e.Host {
			hosts++
		}
	}
	var out []Fill
	for _, name := range []string{"services", "backends", "endpoints", "interfaces", "sandboxes", "listeners", "sources", "snat"} {
		m := d.maps[name]
		f := Fill{Name: name, Max: int(m.MaxEntries())}
		if f.Entries, err = countEntries(m); err != nil {
			return nil, fmt.Errorf("count the entries of mst_%s: %w", name, err)
		}
		if name == "endpoints" {
			f.Entries -= hosts
		}
		out = append(out, f)
	}
	return out, nil
}
