// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Updates are made in lists, as `mustang svc apply` sends them, so many at a time, and all of their services change.
const (
	updatesASecond = 5000
	updatesInList  = 250
)

// updates changes hand-made services, 5,000 a second for some seconds, of which each list changes the weights of the first, and what all others
// lead to; then single services as fast as they are answered: `updates VIP:PORT BACKEND…`.
func updates(_ *scenario, _ string, args []string) result {
	if len(args) < 2 {
		return failure("usage: updates VIP:PORT BACKEND…")
	}
	f := &figures{promise: "service updates"}
	u := &updater{http: unixClient("/run/mustang/mustang.sock")}
	defer u.http.CloseIdleConnections()
	alone := []serviceOf{u.first(args[0], args[1:], 0)}
	if err := u.put(alone, nil); err != nil {
		return result{err: err}
	}
	base, err := countHeld()
	if err != nil {
		return result{err: err}
	}
	err = u.lists(f, args[0], args[1:], time.Duration(number("SOAK_SECONDS", 3))*time.Second)
	if err == nil {
		err = u.single(f, time.Duration(number("SOAK_SECONDS", 3))*time.Second/4)
	}
	if err != nil {
		return f.result(err)
	}
	if err := u.put(alone, nil); err != nil {
		return f.result(err)
	}
	u.http.CloseIdleConnections()
	now, err := settled(base)
	if err == nil {
		f.flat(base, []held{now})
	}
	return f.result(err)
}

// The API's form of hand-made services.
type (
	serviceOf struct {
		Name      string       `json:"name,omitempty"`
		Frontends []frontendOf `json:"frontends"`
		Backends  []backendOf  `json:"backends"`
	}
	frontendOf struct {
		Address  string `json:"address"`
		Port     int    `json:"port"`
		Protocol string `json:"protocol"`
	}
	backendOf struct {
		Address string `json:"address"`
		Weight  int    `json:"weight,omitempty"`
	}
)

type updater struct {
	http *http.Client
	took []time.Duration
}

func (u *updater) call(method, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequest(method, "http://mustang"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	begin := time.Now()
	reply, err := u.http.Do(request)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	text, err = io.ReadAll(reply.Body)
	u.took = append(u.took, time.Since(begin))
	if err != nil {
		return err
	}
	if reply.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

func (u *updater) put(services []serviceOf, changed *int) error {
	var done struct{ Changed int }
	err := u.call(http.MethodPut, "/v1/services", services, &done)
	if changed != nil {
		*changed = done.Changed
	}
	return err
}

// first is the service that has traffic, in one of two forms.
func (*updater) first(frontend string, backends []string, form int) serviceOf {
	addr, port, _ := strings.Cut(frontend, ":")
	s := serviceOf{Name: "first", Frontends: []frontendOf{{Address: addr, Protocol: "tcp"}}}
	_, _ = fmt.Sscan(port, &s.Frontends[0].Port) // 0 serves every port
	for i, b := range backends {
		s.Backends = append(s.Backends, backendOf{b, 1 + (i+form)%2})
	}
	return s
}

// other is a service that nobody asks, with two of four backends of addresses that nobody has.
func (*updater) other(i, form int) serviceOf {
	s := serviceOf{Frontends: []frontendOf{{Address: "10.96.0.50", Port: 1000 + i, Protocol: "tcp"}}}
	for b := range 2 {
		s.Backends = append(s.Backends, backendOf{Address: fmt.Sprintf("10.99.%d.%d:80", 2*form+b, 1+i%250)})
	}
	return s
}

// lists applies lists of changed services for a time.
func (u *updater) lists(f *figures, frontend string, backends []string, long time.Duration) error {
	var forms [2][]serviceOf
	for form := range forms {
		forms[form] = append(forms[form], u.first(frontend, backends, form))
		for i := range updatesInList - 1 {
			forms[form] = append(forms[form], u.other(i, form))
		}
	}
	if err := u.put(forms[0], nil); err != nil {
		return err
	}
	u.took = nil
	const each = time.Second * updatesInList / updatesASecond
	updated, begin := 0, time.Now()
	for i := 1; time.Since(begin) < long; i++ {
		time.Sleep(time.Until(begin.Add(time.Duration(i-1) * each))) // a pace, and behind it at once
		var changed int
		if err := u.put(forms[i%2], &changed); err != nil {
			return err
		}
		if changed != updatesInList {
			return fmt.Errorf("a list of %d services changed %d", updatesInList, changed)
		}
		updated += changed
	}
	rate := float64(updated) / time.Since(begin).Seconds()
	f.soaked("updates a second, in lists of "+fmt.Sprint(updatesInList), fmt.Sprintf("%.0f for %s", rate, time.Since(begin).Round(time.Second)),
		fmt.Sprintf("≥ %d", updatesASecond*95/100), rate >= updatesASecond*95/100)
	f.state("time of a list", fmt.Sprintf("p50 %s, p99 %s of %d", percentile(u.took, 50), percentile(u.took, 99), len(u.took)))
	return nil
}

// single adds and removes one service after another for a time.
func (u *updater) single(f *figures, long time.Duration) error {
	u.took = nil
	begin := time.Now()
	for i := 0; time.Since(begin) < long; i++ {
		s := u.other(1000+i%1000, 0)
		if err := u.call(http.MethodPost, "/v1/services", s, nil); err != nil {
			return err
		}
		if err := u.call(http.MethodDelete, fmt.Sprintf("/v1/services?ref=tcp:10.96.0.50:%d", s.Frontends[0].Port), nil, nil); err != nil {
			return err
		}
	}
	f.state("updates a second, one service and one answer each", fmt.Sprintf("%.0f, p99 %s", float64(len(u.took))/time.Since(begin).Seconds(), percentile(u.took, 99)))
	return nil
}
