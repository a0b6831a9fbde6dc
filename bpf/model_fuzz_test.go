// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// script gives out the choices that a fuzz input makes, zeros when they are used up.
type script struct{ data []byte }

func (s *script) pick(n int) int {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return int(b) % n
}

func (s *script) yes() bool { return s.pick(2) == 1 }

func pickOf[T any](s *script, list ...T) T { return list[s.pick(len(list))] }

// pickOr is one of a list, or half as often as the last of it something else.
func pickOr[T any](s *script, other T, list ...T) T {
	n := s.pick(2 * len(list))
	if n == 2*len(list)-1 {
		return other
	}
	return list[n%len(list)]
}

// stage is a host of the model's and of the kernel's, which are the same.
type stage struct {
	*model
	world
	script
	t       testing.TB
	how     uint8 // the kind of network
	large   bool
	passing bool          // time goes by
	ahead   time.Duration // of the clock
	fronts  []Frontend    // of services, to be asked for
	sent    []tuple       // what has come out, to be answered
	past    []frame       // what went in, to be told of by errors and cut
	seen    map[string]int
}

// Kinds of networks, and what they have more.
const (
	onPairs = iota
	onPrivateParent
	onLAN
	byIPUplink // pairs, and an uplink without Ethernet headers
	kinds
)

// Bits of how.
const (
	passing = 0x10 // time goes by between frames
	large   = 0x20 // some are large, and some of these are still to be cut
)

// setStage makes a host by a script: endpoints, services, published ports and ways out.
func setStage(t testing.TB, how uint8, data []byte) *stage {
	s := &stage{script: script{data}, t: t, how: how & 0xf % kinds, passing: how&passing != 0, large: how&large != 0, seen: map[string]int{}}
	v6 := s.yes()
	netkit = s.yes()
	clearMaps(t)
	s.world = world{TB: t, addresses: addressesOf(v6), lastBackend: 10, lastService: 10}
	s.model = &model{
		endpoints: map[netip.Addr]Endpoint{}, interfaces: map[int]Interface{}, services: map[Frontend]Service{}, backends: map[uint32]Backend{},
		uplinks: map[int]Uplink{}, wayOut: uplinkIf, largest: 1500, requests: map[tuple]*flow{}, answers: map[tuple]*flow{}, left: map[tuple]*flow{},
		returns: map[tuple]*flow{}, fragments: map[pieceKey]flow{}, leftPieces: map[pieceKey]tuple{},
	}
	s.entered = enteredFlow
	s.clock = func() time.Duration {
		now, err := monotonic()
		require.NoError(t, err)
		return time.Duration(now) + s.ahead
	}
	s.pools = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/64")}
	require.NoError(t, testDP.SetPools(s.pools[0], s.pools[1]))
	switch s.how {
	case onPrivateParent, onLAN:
		s.setSlaves(s.how == onPrivateParent)
	case byIPUplink:
		s.outside, s.router = netip.MustParseAddr("8.0.100.7"), netip.MustParseAddr("8.0.100.1")
		if v6 {
			s.outside, s.router = netip.MustParseAddr("2001:db8:86dd::7"), netip.MustParseAddr("2001:db8:86dd::1")
		}
		fallthrough
	default:
		s.setPairs()
	}
	u := Uplink{IfIndex: uplinkIf}
	if s.pick(8) > 0 {
		u.SNAT4, u.SNAT6 = addressesOf(false).host, addressesOf(true).host
	}
	s.addUplink(u)
	for range 2 + s.pick(4) {
		s.addService()
	}
	for range 1 + s.pick(4) {
		s.addPublished()
	}
	return s
}

// setPairs makes containers of two networks, behind pairs.
func (s *stage) setPairs() {
	a := s.addresses
	for _, e := range []Endpoint{
		{Addr: a.client, IfIndex: clientIf, Network: network1, Redirect: true, MAC: clientMAC, HostMAC: clientHostMAC},
		{Addr: a.backend, IfIndex: backendIf, Network: pickOf(&s.script, uint32(network1), network1, network2), Redirect: true, MAC: backendMAC, HostMAC: backendHostMAC},
		{Addr: a.backend2, IfIndex: 1004, Network: network1, Redirect: s.pick(4) > 0, MAC: backend2MAC, HostMAC: backend2HostMAC},
		{Addr: a.foreign, IfIndex: 1005, Network: network2, Redirect: true, MAC: mac(5), HostMAC: mac(0x15)},
	} {
		e.Open, e.Ping = s.pick(5) == 4, s.pick(5) == 4
		s.addEndpoint(e)
	}
	if s.pick(8) > 0 {
		s.addEndpoint(Endpoint{Addr: a.host, Host: true})
	}
	egress, masq, isolated := s.pick(3) > 0, s.pick(3) > 0, s.pick(8) == 7
	for index, hostMAC := range map[int][]byte{clientIf: clientHostMAC, backendIf: backendHostMAC} {
		i := Interface{IfIndex: index, Network: network1, Strict: true, Egress: egress, Masq4: masq, Masq6: masq, MAC: hostMAC, Isolated4: isolated, Isolated6: isolated}
		if index == backendIf {
			i.Network = s.endpoints[a.backend].Network
		}
		four, six := addressesOf(false), addressesOf(true)
		i.Gateway4, i.Gateway6 = four.gateway, six.gateway
		s.addInterface(i)
	}
}

func (s *stage) addEndpoint(e Endpoint) {
	s.endpoints[e.Addr] = e
	require.NoError(s.t, testDP.PutEndpoint(e))
}

func (s *stage) addInterface(i Interface) {
	s.interfaces[i.IfIndex] = i
	require.NoError(s.t, testDP.PutInterface(i))
}

func (s *stage) addUplink(u Uplink) {
	s.uplinks[u.IfIndex] = u
	require.NoError(s.t, testDP.PutUplink(u))
}

// enteredFlow reads what the kernel has entered of a flow.
func enteredFlow(t tuple) (tuple, bool) {
	key := mstTuple{
		Saddr: addrOf(t.src.Addr()), Daddr: addrOf(t.dst.Addr()), Sport: be(t.src.Port()), Dport: be(t.dst.Port()), Proto: t.proto, Dir: dirRequest,
	}
	var v mstCt
	if err := testDP.maps["ct"].Lookup(&key, &v); err != nil {
		return tuple{}, false
	}
	return tuple{netip.AddrPortFrom(v.Saddr.at(), be(v.Sport)), netip.AddrPortFrom(v.Daddr.at(), be(v.Dport)), t.proto}, true
}

var modelPorts = []uint16{80, 53, 5000, 61001}

func (s *stage) addBackend() uint32 {
	s.lastBackend++
	a := s.addresses
	be := Backend{ID: s.lastBackend, Addr: pickOf(&s.script, a.backend, a.backend2, a.client, a.outside, a.foreign), Port: pickOf(&s.script, uint16(8080), 0, 80)}
	if s.pick(8) < 7 { // else a slot whose backend is gone
		s.backends[be.ID] = be
		require.NoError(s.t, testDP.PutBackend(be))
	}
	return be.ID
}

func (s *stage) put(svc Service) {
	s.fronts = append(s.fronts, svc.Frontend)
	s.services[svc.Frontend] = svc
	require.NoError(s.t, testDP.PutService(svc))
}

func (s *stage) addService() {
	front := Frontend{
		Addr: pickOf(&s.script, s.vip, s.vip2, s.foreignVIP), Port: pickOf(&s.script, uint16(80), 53, 0, 5000), Protocol: pickOf(&s.script, ProtocolTCP, ProtocolUDP, ProtocolAny),
	}
	if front.Port == 0 {
		front.Protocol = ProtocolAny
	}
	network := uint32(network1)
	if front.Addr == s.foreignVIP {
		network = pickOf(&s.script, uint32(network2), 0)
	}
	if had, ok := s.services[front.Head()]; ok {
		network = had.Network
	} else {
		s.put(Service{Frontend: front.Head(), Network: network})
	}
	s.lastService++
	svc := Service{Frontend: front, ID: s.lastService, Network: network, Slots: []uint32{}}
	for range s.pick(3) {
		svc.Slots = append(svc.Slots, s.addBackend())
	}
	s.put(svc)
}

func (s *stage) addPublished() {
	all := netip.IPv4Unspecified()
	if s.v6 {
		all = netip.IPv6Unspecified()
	}
	front := Frontend{Addr: pickOf(&s.script, s.host, all, s.backend), Port: pickOf(&s.script, modelPorts...), Protocol: pickOf(&s.script, ProtocolTCP, ProtocolUDP)}
	s.lastService++
	svc := Service{Frontend: front, ID: s.lastService, Published: true, Slots: []uint32{}}
	if front.Addr == s.backend { // a port at the container's own address leads there
		s.lastBackend++
		be := Backend{ID: s.lastBackend, Addr: s.backend, Port: front.Port}
		s.backends[be.ID] = be
		require.NoError(s.t, testDP.PutBackend(be))
		svc.Slots = []uint32{be.ID}
	} else if s.pick(6) > 0 {
		svc.Slots = append(svc.Slots, s.addBackend())
	}
	// which way answers go is asked of the kernel, which has no device of these two
	elsewhere := !s.hasSlaves() && len(svc.Slots) > 0 && slices.Contains([]netip.Addr{s.backend2, s.foreign}, s.backends[svc.Slots[0]].Addr)
	if s.pick(3) == 2 && !elsewhere {
		svc.Sources = []netip.Prefix{pickOf(&s.script, netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("0.0.0.0/0"))}
	}
	s.put(svc)
}

// The sides that frames come from.
const (
	sideClient = iota
	sideBackend
	sideOutside
	sideForeign // of a network of slaves' host
)

// sideOf is where an address sends from, or now and then somebody else in its name.
func (s *stage) sideOf(a netip.Addr, side int) int {
	switch {
	case s.pick(8) == 7:
		return side
	case a == s.client:
		return sideClient
	case a == s.backend:
		return sideBackend
	case a == s.foreign && s.hasSlaves():
		return sideForeign
	}
	return sideOutside
}

// frame makes the next frame, as somebody at the side might, or at another that has to answer.
func (s *stage) frame(side int) (in []byte, from int) {
	a := s.addresses
	own := []netip.Addr{a.client, a.backend, a.outside, a.foreign}[side]
	kind := s.pick(16)
	if kind < 6 && len(s.sent) > 0 { // an answer to what has come out
		t := s.sent[len(s.sent)-1-s.pick(min(4, len(s.sent)))].back()
		flags := pickOf(&s.script, segment{flags: flagSYN | flagACK, seq: 7, ack: 1}, ack, data, fin, segment{flags: flagRST, seq: 9})
		return s.shape(s.of(t, flags)), s.sideOf(t.src.Addr(), side)
	}
	if kind < 8 && len(s.sent) > 0 { // an error about it
		t := s.sent[len(s.sent)-1-s.pick(min(4, len(s.sent)))]
		teller := pickOf(&s.script, t.dst.Addr(), t.dst.Addr(), a.router, a.foreign)
		return unreachable(teller, t.src.Addr(), s.yes(), s.of(t, syn).quote()).macs(clientHostMAC, clientMAC).bytes(), s.sideOf(teller, side)
	}
	if kind < 10 && len(s.past) > 0 { // once more, or what follows
		f := s.past[len(s.past)-1-s.pick(min(4, len(s.past)))]
		return s.shape(f), s.sideOf(f.saddr, side)
	}
	if kind == 10 {
		return s.odd(own), side
	}
	src := own
	if s.pick(12) == 11 {
		src = pickOr(&s.script, a.loopback, a.foreign, a.vip, a.host, a.gateway, a.outside, a.client)
	}
	dst := pickOr(&s.script, a.loopback, a.vip, a.vip, a.vip2, a.host, a.host, a.outside, a.outside, a.backend, a.client, a.foreignVIP, a.backend2, a.foreign, a.gateway, a.poolOnly)
	if side == sideOutside { // who knows of nothing but the host, mostly
		dst = pickOf(&s.script, a.host, a.host, a.host, a.backend, a.client, a.vip)
	}
	sport, dport := pickOf(&s.script, uint16(5000), 5001, 80), pickOf(&s.script, modelPorts...)
	t := tuple{netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), pickOf(&s.script, uint8(protoTCP), protoUDP, protoUDP, s.icmp(), 132)}
	if s.how != onPairs && s.yes() {
		t = s.askFor(t, pickOf(&s.script, s.fronts...))
	}
	return s.shape(s.of(t, pickOf(&s.script, syn, syn, syn, ack, data, fin, segment{flags: flagRST, seq: 5}))), side
}

// askFor is a tuple that leads to a frontend.
func (s *stage) askFor(t tuple, front Frontend) tuple {
	dst := front.Addr
	if dst.IsUnspecified() {
		dst = s.host
	}
	if front.Port != 0 {
		t.dst = netip.AddrPortFrom(dst, front.Port)
	} else {
		t.dst = netip.AddrPortFrom(dst, t.dst.Port())
	}
	if front.Protocol != ProtocolAny {
		t.proto = uint8(front.Protocol)
	}
	return t
}

func (s *stage) icmp() uint8 {
	if s.v6 {
		return protoICMP6
	}
	return protoICMP4
}

// of is a packet with a tuple.
func (s *stage) of(t tuple, flags segment) frame {
	text := "0123456789abcdef"
	if s.large && s.pick(3) == 0 { // what just fits the way out, or does not
		text = strings.Repeat("x", pickOf(&s.script, 1500, 1501, 2000)-s.headers(t.proto))
		flags.data = text
	}
	switch t.proto {
	case protoTCP:
		return tcp(t.src.Addr(), t.src.Port(), t.dst.Addr(), t.dst.Port(), flags)
	case protoUDP:
		if !s.v6 && s.pick(8) == 7 {
			return ip(t.src.Addr(), t.dst.Addr(), protoUDP, udpNoChecksum(t.src.Port(), t.dst.Port(), text))
		}
		return udp(t.src.Addr(), t.src.Port(), t.dst.Addr(), t.dst.Port(), text)
	case protoICMP4, protoICMP6:
		reply := t.src.Port() == 0
		return echoOf(t.src.Addr(), t.dst.Addr(), t.src.Port()|t.dst.Port(), reply)
	}
	return ip(t.src.Addr(), t.dst.Addr(), t.proto, raw(text))
}

// headers is how long those of a packet are that has no options.
func (s *stage) headers(proto uint8) int {
	return s.least() - l2 + map[uint8]int{protoTCP: 20, protoUDP: 8}[proto]
}

// cut chooses what segments a frame is still to be cut into.
func (s *stage) cut(in []byte) {
	s.segment = 0
	p, ok := readSegments(in, 1)
	if !s.large || !ok || !p.whole() || !p.hasPorts() {
		return
	}
	fits := s.largest - (p.l4 - p.l3) - p.header
	s.segment = pickOf(&s.script, 0, 0, 1000, fits, fits+1)
}

// shape gives a packet what a path may give it: fragments, options, a small TTL, padding.
func (s *stage) shape(f frame) []byte {
	s.past = append(s.past, f)
	f.ttl = pickOf(&s.script, uint8(64), 64, 64, 64, 1, 2)
	f.id = uint32(pickOf(&s.script, 0x1234, 0x1234, 0x4321))
	switch s.pick(10) {
	case 6, 7:
		first, later := f.fragments(pickOf(&s.script, 8, 16))
		f = pickOf(&s.script, first, later)
	case 8:
		if s.v6 {
			f.ext = pickOf(&s.script, [][]byte{hopByHop, destination}, [][]byte{destination}, [][]byte{hopByHop, hopByHop, hopByHop, destination, destination, destination, destination})
		} else {
			f.options = pickOf(&s.script, []byte{1, 1, 1, 0}, []byte{7, 7, 4, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{1}, 40))
		}
	case 9:
		f.trailer = s.pick(18)
	}
	if s.large && s.pick(8) == 7 {
		f.length = -1
	}
	b := f.macs(clientHostMAC, clientMAC).bytes()
	switch s.pick(24) { // and now and then a lie
	case 22:
		b = b[:min(len(b), max(s.least(), len(b)-1-s.pick(20)))]
	case 23:
		b[l2+s.pick(len(b)-l2)] ^= byte(1 << s.pick(8))
	}
	return b
}

// odd is what is no packet of a flow.
func (s *stage) odd(own netip.Addr) []byte {
	target := pickOf(&s.script, s.gateway, s.backend, s.vip, s.client, s.foreign, s.outside)
	switch s.pick(5) {
	case 0:
		if s.v6 {
			f := solicit(own, target, clientMAC)
			f.ttl = pickOf(&s.script, uint8(255), 255, 64)
			return f.bytes()
		}
		return append(arpRequest(own, target), make([]byte, 18)...)
	case 1: // a router advertisement, or a redirect
		if s.v6 {
			return icmp(own, target, pickOf(&s.script, uint8(134), 137, 136), 0, 0, make([]byte, 40)).hops(255).macs(clientHostMAC, clientMAC).bytes()
		}
		return icmp(own, target, 5, 1, 0, make([]byte, 28)).macs(clientHostMAC, clientMAC).bytes()
	case 2:
		group := netip.MustParseAddr("224.0.0.251")
		if s.v6 {
			group = netip.MustParseAddr("ff02::fb")
		}
		return udp(own, 5353, group, 5353, "0123456789abcdef").macs(broadcastMAC, clientMAC).bytes()
	case 3: // an error about an error
		return unreachable(own, target, true, unreachable(target, own, true, s.of(tuple{netip.AddrPortFrom(own, 1), netip.AddrPortFrom(target, 2), protoUDP}, syn).quote()).quote()).macs(clientHostMAC, clientMAC).bytes()
	}
	b := udp(own, 5000, target, 53, "0123456789abcdef").macs(clientHostMAC, clientMAC).bytes()
	binary.BigEndian.PutUint16(b[12:], pickOf(&s.script, uint16(0x88cc), 0x8100, 0x88a8, 0x0806, etherIP4, etherIP6))
	return b
}

// least is what a test run wants of a frame: a whole IP header.
func (s *stage) least() int {
	if s.v6 {
		return l2 + 40
	}
	return l2 + 20
}

// play sends frames for as long as the script goes on.
func (s *stage) play() {
	for n := 0; len(s.data) > 0 && n < 40; n++ {
		if s.passing && s.pick(4) == 0 {
			s.pass(pickOf(&s.script, 12800*time.Millisecond, 140800*time.Millisecond, 38400*time.Millisecond, 307200*time.Millisecond, 7500*time.Second))
		}
		if s.hasSlaves() {
			s.slaveStep(n)
		} else {
			s.pairStep(n)
		}
	}
}

// pass lets time go by: all that has a stamp is that much older. No sum of what is passed comes near a time-out, so that it
// does not matter how long a frame takes.
func (s *stage) pass(d time.Duration) {
	s.ahead += d
	for _, name := range []string{"ct", "snat"} {
		var key mstTuple
		var v mstCt
		older := map[mstTuple]mstCt{}
		it := testDP.maps[name].Iterate()
		for it.Next(&key, &v) {
			v.Seen -= uint64(d)
			older[key] = v
		}
		require.NoError(s.t, it.Err())
		for key, v := range older {
			require.NoError(s.t, testDP.maps[name].Put(&key, &v))
		}
	}
	if d > time.Hour { // no fragment waits for its head for so long
		clear(s.fragments)
		clear(s.leftPieces)
		var key mstFragKey
		var keys []mstFragKey
		it := testDP.maps["frags"].Iterate()
		for v := new(mstFrag); it.Next(&key, v); {
			keys = append(keys, key)
		}
		require.NoError(s.t, it.Err())
		for _, key := range keys {
			require.NoError(s.t, testDP.maps["frags"].Delete(&key))
		}
	}
	var last uint64
	require.NoError(s.t, testDP.maps["translated"].Lookup(uint32(0), &last))
	if last != 0 {
		require.NoError(s.t, testDP.maps["translated"].Put(uint32(0), last-uint64(d)))
	}
}

// pairStep sends a frame where a container's pair, or the uplink, has it.
func (s *stage) pairStep(n int) {
	in, side := s.frame([]int{0, 0, 0, 1, 1, 2, 2, 2}[s.pick(8)])
	toClient := side != sideClient && s.pick(6) == 5 // by the host's stack
	if len(in) < s.least() {
		return
	}
	s.cut(in)
	from := 0
	switch {
	case toClient:
		from = pickOf(&s.script, 0, []int{0, backendIf, uplinkIf}[side], uplinkIf)
		s.see(n, hook{"lxc_egress", at(clientIf, from)}, in, func(in, got []byte) judgement { return s.toContainer(clientIf, from, in, got) })
	case side == sideOutside && s.how == byIPUplink:
		s.seeWithoutEthernet(n, in[l2:])
	case side == sideOutside:
		s.see(n, fromOutside(), in, func(in, got []byte) judgement { return s.fromUplink(uplinkIf, in, got) })
	default:
		h := []hook{fromClient(), fromBackend()}[side]
		s.see(n, h, in, func(in, got []byte) judgement { return s.fromContainer(int(h.ctx.Ifindex), in, got) })
	}
}

func (s *stage) hasSlaves() bool { return s.how == onPrivateParent || s.how == onLAN }

// seeWithoutEthernet shows a packet to the program of an uplink that has no more than that. A test run takes the type of what
// it brings from where an Ethernet header has it, which is within the source address: so those outside are chosen by theirs.
func (s *stage) seeWithoutEthernet(n int, packet []byte) {
	if len(packet) < s.least() {
		return
	}
	h := hook{"host_ip_ingress", at(uplinkIf, uplinkIf)}
	h.ctx.GsoSize, h.ctx.GsoSegs = uint32(s.segment), uint32(min(s.segment, 2))
	ethernet := slices.Concat(mac(1), mac(2), packet[12:14])
	in, got := slices.Concat(ethernet, packet), s.sendRaw(h, packet)
	enters := got.verdict == verdictRedirect && len(got.counted) == 0
	if !enters { // all else stays as it is on the device
		got.out = slices.Concat(ethernet, got.out)
	}
	want := s.fromUplink(uplinkIf, in, got.out)
	if !enters && want.frame != nil {
		want.frame = withMACs(want.frame, mac(1), mac(2))
	}
	s.compare(n, h, in, got, want)
	s.note(h, in, got, want)
	s.cameOut(got)
}

// see shows a frame to a program and to the model.
func (s *stage) see(n int, h hook, in []byte, judge func(in, got []byte) judgement) result {
	h.ctx.GsoSize, h.ctx.GsoSegs = uint32(s.segment), uint32(min(s.segment, 2))
	got := s.sendRaw(h, in)
	want := judge(in, got.out)
	s.compare(n, h, in, got, want)
	s.note(h, in, got, want)
	s.cameOut(got)
	return got
}

// cameOut notes what may be answered.
func (s *stage) cameOut(got result) {
	if p, ok := s.read(got.out); ok && got.verdict != verdictDrop && !p.later {
		s.sent = append(s.sent, p.t)
	}
}

// note counts what became of frames.
func (s *stage) note(h hook, in []byte, got result, want judgement) {
	kind := "as it is"
	if got.verdict == verdictDrop {
		kind = want.reason
	} else if !bytes.Equal(in[12:], got.out[12:]) {
		kind = "changed " + want.reason
	}
	s.seen[h.program+" "+[]string{"passes", 2: "drops", 7: "redirects"}[got.verdict]+" "+strings.TrimSpace(kind)]++
}

// compare requires that the kernel did what the model wants.
func (s *stage) compare(n int, h hook, in []byte, got result, want judgement) {
	var counted []string
	for reason, n := range got.counted {
		require.Equal(s.t, uint64(1), n)
		counted = append(counted, reason)
	}
	what := func() string {
		return "frame " + string(rune('0'+n/10)) + string(rune('0'+n%10)) + " at " + h.program + ", counted " + strings.Join(counted, ", ") + ", wanted " + want.String() + "\nin\n" + dump(in) + "out\n" + dump(got.out) + "wanted\n" + dump(want.frame)
	}
	if want.verdict != got.verdict {
		s.t.Fatalf("verdict %d: %s", got.verdict, what())
	}
	if reasons := strings.Join(counted, ", "); strings.TrimSpace(want.reason) != reasons {
		s.t.Fatalf("reason: %s", what())
	}
	if want.frame != nil && got.verdict != verdictDrop && !bytes.Equal(s.sameZeros(want.frame), s.sameZeros(got.out)) {
		s.t.Fatalf("frame: %s", what())
	}
}

// sameZeros writes the zero of one's complement sums in one way: 0xffff means it, too.
func (s *stage) sameZeros(b []byte) []byte {
	p, ok := s.read(b)
	if !ok || p.later {
		return b
	}
	b = slices.Clone(b)
	at := map[uint8]int{protoTCP: 16, protoICMP4: 2, protoICMP6: 2}[p.t.proto]
	if at != 0 && beAt(b, p.l4+at) == 0xffff {
		b[p.l4+at], b[p.l4+at+1] = 0, 0
	}
	return b
}

// TestModel plays random scripts.
func TestModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int{}
	for n := range 800 {
		data := make([]byte, 100+r.IntN(400))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		s := setStage(t, uint8(n/4<<4|n%kinds), data)
		s.play()
		for what, n := range s.seen {
			seen[what] += n
		}
	}
	netkit = false
	for _, what := range []string{
		"malformed", "spoofed", "isolated", "no-route", "no-fragment-head", "no-service", "no-backend", "not-member", "no-flow", "multicast", "ttl", "off-host", "source", "too-big",
		"lxc_ingress redirects changed", "lxc_netkit redirects changed", "lxc_egress passes changed", "host_ingress redirects changed", "host_ingress passes as it is",
		"lxc_ingress passes changed", "host_ip_ingress redirects changed", "slave_ingress redirects changed", "slave_ingress redirects as it is", "slave_ingress passes as it is", "slave_ingress drops multicast", "host_ingress redirects as it is",
	} {
		is := func(one string) bool { return strings.Contains(one, what) }
		require.True(t, slices.ContainsFunc(slices.Collect(maps.Keys(seen)), is), "no frame of 800 scripts came to %s: %v", what, seen)
	}
}

// FuzzModel plays scripts on random hosts, and requires of the programs what the model does.
func FuzzModel(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 40 * kinds {
		data := make([]byte, 200)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(uint8(n/kinds<<4|n%kinds), data)
	}
	f.Fuzz(func(t *testing.T, how uint8, data []byte) {
		if len(data) > 600 {
			return
		}
		defer func() { netkit = false }()
		setStage(t, how, data).play()
	})
}
