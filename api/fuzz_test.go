// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/cni"
	"github.com/mustang-net/mustang/monitor"
	"github.com/mustang-net/mustang/service"
)

// checkedHost is a Host that takes what the server lets through, and requires that it is in order.
type checkedHost struct {
	t     *testing.T
	calls int
	fault bool // it had one of its own
}

func (h *checkedHost) spec(s service.Spec) {
	require.True(h.t, s.Frontend.Addr.IsValid() && !s.Frontend.Addr.Is4In6() && s.Frontend.Addr.Zone() == "", "%v", s.Frontend)
	require.NoError(h.t, checkFrontend(s.Frontend))
	for _, b := range s.Backends {
		require.NoError(h.t, checkBackend(b.Addr))
		require.Equal(h.t, s.Frontend.Addr.Is4(), b.Addr.Addr().Is4())
		require.LessOrEqual(h.t, b.Weight, uint32(maxWeight))
	}
}

func (h *checkedHost) Services(context.Context) ([]service.View, error) { h.calls++; return nil, nil }

func (h *checkedHost) AddService(_ context.Context, s service.Spec) (service.View, error) {
	h.calls++
	h.spec(s)
	return service.View{ID: 1, Name: s.Name}, nil
}

func (h *checkedHost) RemoveService(_ context.Context, ref string) error {
	h.calls++
	require.NotEmpty(h.t, ref)
	return notFound{errors.New("no such service")}
}

func (h *checkedHost) ApplyServices(_ context.Context, specs []service.Spec) (Applied, error) {
	h.calls++
	for _, s := range specs {
		h.spec(s)
	}
	return Applied{Added: len(specs)}, nil
}

func (h *checkedHost) Drain(_ context.Context, ref string, _ bool) error {
	h.calls++
	require.NotEmpty(h.t, ref)
	return conflict{errors.New("it is on its way out")}
}

func (h *checkedHost) Endpoints(context.Context) ([]Endpoint, error) { h.calls++; return nil, nil }

func (h *checkedHost) AddEndpoint(_ context.Context, ifname, netns string) (Endpoint, error) {
	h.calls++
	require.NotEmpty(h.t, ifname)
	require.NotEmpty(h.t, netns)
	return Endpoint{Endpoint: driver.Endpoint{IfName: ifname}}, nil
}

func (h *checkedHost) RemoveEndpoint(_ context.Context, ref string) error {
	h.calls++
	require.NotEmpty(h.t, ref)
	return unavailable{errors.New("not now")}
}

func (h *checkedHost) Networks(context.Context) ([]Network, error) { h.calls++; return nil, nil }
func (h *checkedHost) Ports(context.Context) ([]Port, error)       { h.calls++; return nil, nil }
func (h *checkedHost) Status(context.Context) (Status, error) {
	h.calls, h.fault = h.calls+1, true
	return Status{}, errors.New("a fault of our own")
}
func (h *checkedHost) Verify(context.Context, bool) (Verification, error) {
	h.calls++
	return Verification{}, nil
}

func (h *checkedHost) Monitor(context.Context, monitor.Filter, func(monitor.Event) error) error {
	h.calls++
	return unavailable{errors.New("somebody else watches")}
}

func (h *checkedHost) CNI() cni.Host { return checkedRuntimes{h} }

type checkedRuntimes struct{ h *checkedHost }

func (r checkedRuntimes) Add(_ context.Context, a cni.Attachment) (cni.Attached, error) {
	r.h.calls++
	return cni.Attached{IPs: a.Given}, nil
}
func (r checkedRuntimes) Delete(context.Context, cni.Detachment) (done cni.Detached, err error) {
	r.h.calls++
	return done, nil
}
func (r checkedRuntimes) Check(context.Context, cni.Attachment) error { r.h.calls++; return nil }
func (r checkedRuntimes) RemoveNetwork(context.Context, string) error { r.h.calls++; return nil }
func (r checkedRuntimes) CanAdd(context.Context, cni.Network) error   { r.h.calls++; return nil }
func (r checkedRuntimes) Collect(context.Context, string, []cni.Attachee) (done cni.Collected, err error) {
	r.h.calls++
	return done, nil
}
func (r checkedRuntimes) CreateNetwork(_ context.Context, n cni.Network) (cni.Network, error) {
	r.h.calls++
	return n, nil
}

// FuzzRequests sends any request to the API: it is answered with JSON and a status that fits, and what reaches the
// host is in order.
func FuzzRequests(f *testing.F) {
	for _, seed := range [][3]string{
		{"GET", "/v1/services", ""}, {"GET", "/v1/endpoints", ""}, {"GET", "/v1/networks", ""}, {"GET", "/v1/ports", ""}, {"GET", "/v1/status", ""},
		{"POST", "/v1/services", `{"name":"web","frontends":[{"address":"10.96.0.1","port":80,"protocol":"tcp"}],"backends":[{"address":"10.0.0.1:80","weight":3,"active":true}],"affinity_seconds":60}`},
		{"POST", "/v1/services", `{"frontends":[{"address":"::ffff:10.96.0.1","port":80}],"backends":[{"address":"[fe80::1%eth0]:80"}]}`},
		{"PUT", "/v1/services", `[{"frontends":[{"address":"fd00::1","port":0},{"address":"10.96.0.1","port":1}],"backends":[{"address":"[fd00::2]","active":false},{"address":"10.0.0.1","active":false,"state":"draining"}]}]`},
		{"PUT", "/v1/services", `null`}, {"PUT", "/v1/services", `[null,{}]`},
		{"DELETE", "/v1/services?ref=tcp:10.96.0.1:80", ""}, {"DELETE", "/v1/services", ""},
		{"POST", "/v1/drain", `{"ref":"10.0.0.1:80","undo":true}`}, {"POST", "/v1/drain", `{} {}`},
		{"POST", "/v1/endpoints", `{"ifname":"eth0","netns":"/run/netns/../../etc"}`}, {"DELETE", "/v1/endpoints?ref=%00", ""},
		{"POST", "/v1/networks", `{"name":"n","ranges":[{"subnet":"10.0.0.0/24","range":"10.0.0.128/25","gateway":"10.0.0.1"}],"options":{"mode":"veth"}}`},
		{"DELETE", "/v1/networks?ref=..%2F..", ""},
		{"POST", "/v1/cni/add", `{"network":"n","container":"c","ifname":"eth0","of":{"name":"n"},"sandbox":"/run/netns/a","ips":["10.0.0.2"],"given":[{"address":"10.0.0.2/24"}],"ports":[{"Protocol":6,"Port":80,"HostPort":8080}]}`},
		{"POST", "/v1/cni/del", `{"network":"n","container":"c","ifname":"eth0"}`}, {"POST", "/v1/cni/check", `{"network":"n","routes":["0.0.0.0/0"]}`},
		{"POST", "/v1/cni/gc", `{"network":"n","valid":[{"container":"c","ifname":"eth0"}]}`}, {"POST", "/v1/cni/status", `{"name":"n"}`},
		{"GET", "/v1/verify", ""}, {"POST", "/v1/verify", ""}, {"GET", "/v1/events?network=n&verdict=drop&network=", ""}, {"PATCH", "/v1/services", "{}"}, {"GET", "/v2/", ""}, {"GET", "//v1/../v1/services", ""}, {"POST", "/v1/services", strings.Repeat("[", 20000)},
	} {
		f.Add(seed[0], seed[1], []byte(seed[2]))
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	known := map[int]bool{200: true, 301: true, 307: true, 400: true, 403: true, 404: true, 405: true, 409: true, 413: true, 500: true, 503: true}
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		u, err := url.ParseRequestURI(target)
		if err != nil || strings.ContainsFunc(method, func(r rune) bool { return r < 'A' || r > 'Z' }) || method == "" || target == "*" {
			return // Go's server answers these itself, and `*` with a bare 400
		}
		host := &checkedHost{t: t}
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", strings.NewReader(string(body)))
		r.Method, r.URL, r.RequestURI = method, u, target
		handler(context.Background(), host, log, nil).ServeHTTP(w, r)
		require.True(t, known[w.Code], "status %d", w.Code)
		require.LessOrEqual(t, host.calls, 1)
		if w.Code/100 == 3 {
			return
		}
		var answer any
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer))
		switch told, _ := answer.(map[string]any); {
		case w.Code >= 400:
			require.NotEmpty(t, told["error"])
		default:
			require.Equal(t, 1, host.calls)
		}
		if host.calls == 0 {
			require.Contains(t, []int{400, 404, 413}, w.Code)
		}
		require.Equal(t, host.fault, w.Code == 500, "only the host's own faults are 500")
	})
}

// FuzzTexts gives any text to what reads flags by hand: what it takes it writes so that it reads the same again.
func FuzzTexts(f *testing.F) {
	for _, s := range []string{
		"10.96.0.100:5201", "10.96.0.100", "[fd00::1]:80", "[fd00::1]", "[fd00::1]:80@7", "10.0.0.1@100", "[::ffff:10.0.0.1]:80", "[fe80::1%eth0]:80",
		"tcp:10.96.0.1:80", "any:[fd00::1]", "1", "web", "10.96.0.1:080", "0x7f.1:80", "[]:80", "]:80", "10.0.0.1:80@", "a_b.c",
	} {
		f.Add(s, "tcp")
	}
	f.Fuzz(func(t *testing.T, s, protocol string) {
		if a, err := ParseTarget(s); err == nil {
			again, err := ParseTarget(FormatTarget(a))
			require.NoError(t, err)
			require.Equal(t, a, again)
			require.False(t, a.Addr().Is4In6())
		}
		if b, err := ParseBackend(s); err == nil {
			target, err := b.target()
			require.NoError(t, err)
			require.NoError(t, checkBackend(target.Addr))
		}
		if front, err := ParseFrontend(s, protocol); err == nil {
			parsed, err := front.parse()
			require.NoError(t, err)
			require.NoError(t, checkFrontend(parsed))
			v := service.View{ID: 1}
			v.Frontends = append(v.Frontends, parsed)
			require.True(t, Matches(v, FormatFrontend(parsed)))
			_, err = (Service{Frontends: []Frontend{front}}).Specs()
			require.NoError(t, err)
		}
		if CheckName(s) == nil {
			_, err := netip.ParseAddrPort(s)
			require.Error(t, err)
			require.False(t, Matches(service.View{ID: 1, Frontends: nil, Name: "other" + s}, s))
		}
	})
}
