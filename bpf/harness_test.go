// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

// skbuff is struct __sk_buff. BPF_PROG_TEST_RUN takes mark, priority, ingress_ifindex, ifindex, cb, tstamp,
// wire_len, gso_segs, gso_size and hwtstamp from it; all else must be zero.
type skbuff struct {
	Len, PktType, Mark, QueueMapping           uint32
	Protocol, VlanPresent, VlanTci, VlanProto  uint32
	Priority, IngressIfindex, Ifindex, TcIndex uint32
	Cb                                         [5]uint32
	Hash, TcClassid, Data, DataEnd, NapiID     uint32
	Family, RemoteIP4, LocalIP4                uint32
	RemoteIP6, LocalIP6                        [4]uint32
	RemotePort, LocalPort, DataMeta            uint32
	FlowKeys, Tstamp                           uint64
	WireLen, GsoSegs                           uint32
	Sk                                         uint64
	GsoSize                                    uint32
	TstampType                                 uint8
	Pad                                        [3]uint8
	Hwtstamp                                   uint64
}

// Verdicts of tc.
const (
	verdictPass     = 0
	verdictDrop     = 2
	verdictRedirect = 7
)

const (
	network1 = 1
	network2 = 2
)

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0x4d, 0x53, 0x54, 0, last} }

var (
	clientMAC, clientHostMAC     = mac(2), mac(0x12)
	backendMAC, backendHostMAC   = mac(3), mac(0x13)
	backend2MAC, backend2HostMAC = mac(4), mac(0x14)
	broadcastMAC                 = net.HardwareAddr{255, 255, 255, 255, 255, 255}
	everyNodeMAC                 = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// addresses are those of the test's world, in one family.
type addresses struct {
	v6                                          bool
	client, backend, backend2, foreign, gateway netip.Addr // foreign is in network 2
	vip, vip2, foreignVIP, poolOnly, outside    netip.Addr
	host, router                                netip.Addr // on the uplink
	loopback                                    netip.Addr // the host's
}

func addressesOf(v6 bool) addresses {
	a := func(four, six string) netip.Addr {
		if v6 {
			return netip.MustParseAddr(six)
		}
		return netip.MustParseAddr(four)
	}
	return addresses{
		v6:         v6,
		gateway:    a("10.1.0.1", "fd00:1::1"),
		client:     a("10.1.0.2", "fd00:1::2"),
		backend:    a("10.1.0.3", "fd00:1::3"),
		backend2:   a("10.1.0.4", "fd00:1::4"),
		foreign:    a("10.2.0.2", "fd00:2::2"),
		vip:        a("10.96.0.10", "fd00:96::10"),
		vip2:       a("10.96.0.11", "fd00:96::11"),
		foreignVIP: a("10.96.128.10", "fd00:96::8010"),
		poolOnly:   a("10.96.0.99", "fd00:96::99"),
		outside:    a("198.51.100.7", "2001:db8:7::7"),
		host:       a("192.0.2.2", "2001:db8::2"),
		router:     a("192.0.2.1", "2001:db8::1"),
		loopback:   a("127.0.0.1", "::1"),
	}
}

// world is the maps' contents and one family's addresses: two sandboxes on strict veths and a service pool.
type world struct {
	addresses
	testing.TB
	lastBackend uint32
	lastService uint32
}

func newWorld(t testing.TB, v6 bool) *world {
	clearMaps(t)
	w := &world{TB: t, addresses: addressesOf(v6)}
	require.NoError(w, testDP.SetPools(netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/64")))
	for _, v6 := range []bool{false, true} {
		a := addressesOf(v6)
		for _, e := range []Endpoint{
			{Addr: a.client, IfIndex: clientIf, Network: network1, Redirect: true, MAC: clientMAC, HostMAC: clientHostMAC},
			{Addr: a.backend, IfIndex: backendIf, Network: network1, Redirect: true, MAC: backendMAC, HostMAC: backendHostMAC},
			{Addr: a.backend2, IfIndex: 1004, Network: network1, Redirect: true, MAC: backend2MAC, HostMAC: backend2HostMAC},
			{Addr: a.foreign, IfIndex: 1005, Network: network2, Redirect: true, MAC: mac(5), HostMAC: mac(0x15)},
		} {
			require.NoError(w, testDP.PutEndpoint(e))
		}
	}
	four, six := addressesOf(false), addressesOf(true)
	for index, hostMAC := range map[int]net.HardwareAddr{clientIf: clientHostMAC, backendIf: backendHostMAC} {
		require.NoError(w, testDP.PutInterface(Interface{
			IfIndex: index, Network: network1, Strict: true, Gateway4: four.gateway, Gateway6: six.gateway, MAC: hostMAC,
		}))
	}
	return w
}

// clearMaps empties every map but the sockets' own storage.
func clearMaps(t testing.TB) {
	t.Helper()
	testDP.sources = sources{}
	for name, m := range testDP.maps {
		switch name {
		case "socks", "events":
			continue
		case "event_rate":
			require.NoError(t, m.Put(uint32(0), make([]mstEventRate, ebpf.MustPossibleCPU())))
			continue
		case "config":
			require.NoError(t, testDP.putConfig(mstConfig{}))
			continue
		case "translated":
			require.NoError(t, m.Put(uint32(0), uint64(0)))
			continue
		}
		var keys [][]byte
		key, value := make([]byte, m.KeySize()), make([]byte, int(m.ValueSize()))
		it := m.Iterate()
		if m.Type() == ebpf.PerCPUHash {
			var v [][]byte
			for it.Next(&key, &v) {
				keys = append(keys, slices.Clone(key))
			}
		} else {
			for it.Next(&key, &value) {
				keys = append(keys, slices.Clone(key))
			}
		}
		require.NoError(t, it.Err(), name)
		for _, k := range keys {
			require.NoError(t, m.Delete(k), name)
		}
	}
}

// both runs each test of a table once per family.
func both(t *testing.T, table []scenario) {
	for _, v6 := range []bool{false, true} {
		name := "IPv4"
		if v6 {
			name = "IPv6"
		}
		t.Run(name, func(t *testing.T) { run(t, v6, table) })
	}
}

// scenario is a name that reads as a sentence, and packets with what becomes of them.
type scenario struct {
	name string
	run  func(w *world)
}

// run runs a table on each kind of pair: what they decide must be the same.
func run(t *testing.T, v6 bool, table []scenario) {
	for _, kind := range []string{"veth", "netkit"} {
		t.Run(kind, func(t *testing.T) {
			netkit = kind == "netkit"
			t.Cleanup(func() { netkit = false })
			for _, s := range table {
				t.Run(s.name, func(t *testing.T) { s.run(newWorld(t, v6)) })
			}
		})
	}
}

// backendAt makes a backend; port 0 keeps the frontend's.
func (w *world) backendAt(addr netip.Addr, port uint16) uint32 {
	w.Helper()
	w.lastBackend++
	require.NoError(w, testDP.PutBackend(Backend{ID: w.lastBackend, Addr: addr, Port: port}))
	return w.lastBackend
}

// service makes a frontend of network 1 over backends, and the head of its VIP if that is missing.
func (w *world) service(vip netip.Addr, port uint16, proto Protocol, slots ...uint32) Service {
	w.Helper()
	w.lastService++
	s := Service{
		Frontend: Frontend{Addr: vip, Port: port, Protocol: proto}, ID: w.lastService, Network: network1, Slots: slots,
	}
	w.putService(s)
	return s
}

func (w *world) putService(s Service) {
	w.Helper()
	key := s.Frontend.Head().key(0)
	var had mstService
	if err := testDP.maps["services"].Lookup(&key, &had); errors.Is(err, ebpf.ErrKeyNotExist) {
		require.NoError(w, testDP.PutService(Service{Frontend: s.Frontend.Head(), Network: s.Network}))
	}
	require.NoError(w, testDP.PutService(s))
}

// hook is where a program runs on a packet.
type hook struct {
	program string
	ctx     skbuff
}

// fromClient is the hook that sees what the client sends.
func fromClient() hook { return from(clientIf) }

func fromBackend() hook { return from(backendIf) }

// netkit chooses the kind of pair.
var netkit bool

// from is the ingress of the host end of a veth, or the transmission of a netkit device, where the packet
// has come in nowhere yet.
func from(ifindex int) hook {
	if netkit {
		return hook{"lxc_netkit", at(ifindex, 0)}
	}
	return hook{"lxc_ingress", at(ifindex, ifindex)}
}

// toClient is the egress of the host end; from is the device on which the packet came, 0 for the host.
func toClient(from int) hook { return hook{"lxc_egress", at(clientIf, from)} }

func at(ifindex, from int) skbuff {
	return skbuff{Ifindex: uint32(ifindex), IngressIfindex: uint32(from)}
}

// result is what became of a packet.
type result struct {
	w       *world
	in, out []byte
	verdict uint32
	counted map[string]uint64 // reason/direction -> packets
}

// send sends a frame that has no link-layer addresses as its side would.
func (w *world) send(h hook, f frame) result {
	w.Helper()
	if f.dst == nil {
		f.dst, f.src = clientHostMAC, clientMAC
		if h.ctx.Ifindex == uint32(backendIf) {
			f.dst, f.src = backendHostMAC, backendMAC
		}
		if h.program == "lxc_egress" {
			f.dst, f.src = f.src, f.dst
		}
	}
	in := f.bytes()
	r := w.sendRaw(h, in)
	if verify(in) == nil {
		require.NoError(w, verify(r.out), "packet out\n%s", dump(r.out))
	}
	return r
}

// sendRaw sends bytes as they are.
func (w *world) sendRaw(h hook, in []byte) result {
	w.Helper()
	before := w.drops()
	opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+512), Context: h.ctx}
	verdict, err := testDP.program(h.program).Run(&opts)
	require.NoError(w, err, "run %s", h.program)
	counted := w.drops()
	for k, n := range before {
		if counted[k] -= n; counted[k] == 0 {
			delete(counted, k)
		}
	}
	return result{w: w, in: in, out: opts.DataOut, verdict: verdict, counted: counted}
}

func (w *world) drops() map[string]uint64 {
	w.Helper()
	drops, err := testDP.Drops()
	require.NoError(w, err)
	out := map[string]uint64{}
	for _, d := range drops {
		out[d.Reason+" "+d.Direction] += d.Packets
	}
	return out
}

func (r result) is(verdict uint32, out []byte, counted ...string) {
	r.w.Helper()
	require.Equal(r.w, verdict, r.verdict, "verdict; counted %v; packet out\n%s", r.counted, dump(r.out))
	require.ElementsMatch(r.w, counted, slices.Collect(maps.Keys(r.counted)), "counters")
	if out != nil && !bytes.Equal(out, r.out) {
		r.w.Fatalf("packet in\n%swant out\n%sgot out\n%s", dump(r.in), dump(out), dump(r.out))
	}
}

// sourcePort is that of the packet that came out.
func (r result) sourcePort() uint16 {
	at := 14 + 20
	if r.out[12] == 0x86 {
		at = 14 + 40
	}
	return binary.BigEndian.Uint16(r.out[at:])
}

// dropped says that the packet went nowhere, for a reason, and that nobody was told.
func (r result) dropped(reason string) {
	r.w.Helper()
	direction := " from-container"
	if strings.HasSuffix(reason, " to-container") {
		direction = ""
	}
	r.is(verdictDrop, nil, reason+direction)
}

// ignored says that the packet went nowhere and needs no counter.
func (r result) ignored() { r.w.Helper(); r.is(verdictDrop, nil) }

// untouched says that the packet goes on to the stack as it came.
func (r result) untouched() { r.w.Helper(); r.is(verdictPass, r.in) }

// toStack says that the packet goes on to the stack as out, with the link-layer addresses it had.
func (r result) toStack(out frame) {
	r.w.Helper()
	r.is(verdictPass, out.macs(r.in[:6], r.in[6:12]).bytes())
}

// toBackend says that out goes straight into the backend's sandbox; toClient, into the client's.
func (r result) toBackend(out frame) {
	r.w.Helper()
	r.is(verdictRedirect, out.macs(backendMAC, backendHostMAC).bytes())
}

func (r result) toBackend2(out frame) {
	r.w.Helper()
	r.is(verdictRedirect, out.macs(backend2MAC, backend2HostMAC).bytes())
}

func (r result) toClient(out frame) {
	r.w.Helper()
	r.is(verdictRedirect, out.macs(clientMAC, clientHostMAC).bytes())
}

// answered says that out goes back to the sender; a reason if that is a refusal.
func (r result) answered(out frame, reason ...string) {
	r.w.Helper()
	if len(reason) > 0 {
		out.id = 0 // a packet of its own
	}
	for i := range reason {
		reason[i] += " from-container"
	}
	r.is(verdictRedirect, out.macs(r.in[6:12], r.in[:6]).bytes(), reason...)
}

// ct is the entry of a frame's tuple in mst_ct, nil if there is none.
func (w *world) ct(f frame, dir uint8) *mstCt {
	w.Helper()
	key := w.tuple(f, dir)
	var v mstCt
	err := testDP.maps["ct"].Lookup(&key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	require.NoError(w, err)
	return &v
}

func (w *world) tuple(f frame, dir uint8) mstTuple {
	body := f.body(f.saddr, f.daddr)
	return mstTuple{
		Saddr: addrOf(f.saddr), Daddr: addrOf(f.daddr), Proto: f.proto, Dir: dir,
		Sport: be(uint16(body[0])<<8 | uint16(body[1])), Dport: be(uint16(body[2])<<8 | uint16(body[3])),
	}
}

// age makes an entry look as if it was last used so many seconds ago.
func (w *world) age(f frame, dir uint8, seconds uint64) {
	w.Helper()
	v := w.ct(f, dir)
	require.NotNil(w, v)
	v.Seen -= seconds * 1e9
	key := w.tuple(f, dir)
	require.NoError(w, testDP.maps["ct"].Put(&key, v))
}

// raw is a payload as it is.
func raw(s string) payload {
	return func(netip.Addr, netip.Addr) []byte { return []byte(s) }
}

// movesTo puts the backend's sandbox into another network.
func (w *world) movesTo(network uint32) {
	w.Helper()
	require.NoError(w, testDP.PutEndpoint(Endpoint{
		Addr: w.backend, IfIndex: backendIf, Network: network, Redirect: true, MAC: backendMAC, HostMAC: backendHostMAC,
	}))
	require.NoError(w, testDP.PutInterface(Interface{IfIndex: backendIf, Network: network, Strict: true, MAC: backendHostMAC}))
}

// dump shows the headers of a frame.
func dump(b []byte) string { return hex.Dump(b[:min(len(b), 128)]) }
