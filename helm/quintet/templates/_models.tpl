{{- /* What there is to serve, as YAML: models, upstreams and router, of values and of modelsFile. */ -}}
{{- define "quintet.config" -}}
{{- $file := dict -}}
{{- if .Values.modelsFile -}}
{{- $file = fromYaml .Values.modelsFile -}}
{{- if hasKey $file "Error" }}{{ fail (printf "modelsFile: not valid YAML: %s" $file.Error) }}{{ end -}}
{{- range $key, $_ := $file -}}
{{- if not (has $key (list "models" "upstreams" "router")) }}{{ fail (printf "modelsFile: unknown key %q" $key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $models := ternary $file.models .Values.models (not (empty .Values.modelsFile)) -}}
{{- $upstreams := concat (default (list) $file.upstreams) .Values.upstreams -}}
{{- $router := mergeOverwrite (deepCopy (default (dict) $file.router)) (deepCopy .Values.router.settings) -}}
{{- dict "models" (default (list) $models) "upstreams" $upstreams "router" $router | toYaml -}}
{{- end }}

{{- /* The services: which module serves which kinds, and from which image. */ -}}
{{- define "quintet.services" -}}
chat: {module: quintet_chat, kinds: [chat], image: quintet/chat}
multimodal: {module: quintet_chat.multimodal, kinds: [multimodal], image: quintet/chat}
vision: {module: quintet_vision, kinds: [image], image: quintet/vision}
tts: {module: quintet_tts, kinds: [tts], image: quintet/tts}
embed: {module: quintet_embed, kinds: [embedding, rerank], image: quintet/embed}
{{- end }}

{{- /*
All Deployments that serve models, as a JSON list of {name, service, module, models, settings}: first those of kinds,
then those of groups. What cannot be is refused here, by name.
*/ -}}
{{- define "quintet.workloads" -}}
{{- $services := include "quintet.services" . | fromYaml -}}
{{- $config := include "quintet.config" . | fromYaml -}}
{{- $serviceOf := dict -}}
{{- $byId := dict -}}
{{- range $name, $service := $services -}}
{{- range $service.kinds }}{{ $_ := set $serviceOf . $name }}{{ end -}}
{{- end -}}
{{- range $n, $model := $config.models -}}
{{- if not (and $model.id $model.kind $model.path) }}{{ fail (printf "models[%d]: id, kind and path are needed" $n) }}{{ end -}}
{{- if not (hasKey $serviceOf $model.kind) }}{{ fail (printf "models[%d] (%s): kind %q is not one of %s" $n $model.id $model.kind (keys $serviceOf | sortAlpha | join ", ")) }}{{ end -}}
{{- if hasKey $byId $model.id }}{{ fail (printf "models[%d]: the id %q is taken already" $n $model.id) }}{{ end -}}
{{- $_ := set $byId $model.id $model -}}
{{- end -}}
{{- range $n, $upstream := $config.upstreams -}}
{{- if $upstream.key }}{{ fail (printf "upstreams[%d] (%s): key must not stand in values; put the entry into the Secret router.upstreams.existingSecret" $n $upstream.url) }}{{ end -}}
{{- end -}}
{{- $result := list -}}
{{- $grouped := dict -}}
{{- $groups := list -}}
{{- range $name, $group := .Values.groups -}}
{{- if or (hasKey $services $name) (hasKey $.Values.vllm $name) (eq $name "router") }}{{ fail (printf "groups.%s: the name is taken" $name) }}{{ end -}}
{{- $models := list -}}
{{- $service := "" -}}
{{- range $group.models -}}
{{- $model := get $byId . -}}
{{- if not $model }}{{ fail (printf "groups.%s.models: there is no model %q" $name .) }}{{ end -}}
{{- if hasKey $grouped . }}{{ fail (printf "groups.%s.models: %q is in the group %s already" $name . (get $grouped .)) }}{{ end -}}
{{- $own := get $serviceOf $model.kind -}}
{{- if and $service (ne $service $own) }}{{ fail (printf "groups.%s.models: %q is for the service %s, others are for %s" $name . $own $service) }}{{ end -}}
{{- $service = $own -}}
{{- $_ := set $grouped . $name -}}
{{- $models = append $models $model -}}
{{- end -}}
{{- $settings := mergeOverwrite (deepCopy $.Values.workload) (deepCopy (index $.Values $service)) (omit $group "models") -}}
{{- $groups = append $groups (include "quintet.workload" (list $ $name $service $models $settings) | fromJson) -}}
{{- end -}}
{{- range $name := list "chat" "multimodal" "vision" "tts" "embed" -}}
{{- $models := list -}}
{{- range $config.models -}}
{{- if and (eq (get $serviceOf .kind) $name) (not (hasKey $grouped .id)) }}{{ $models = append $models . }}{{ end -}}
{{- end -}}
{{- if $models -}}
{{- $settings := mergeOverwrite (deepCopy $.Values.workload) (deepCopy (index $.Values $name)) -}}
{{- $result = append $result (include "quintet.workload" (list $ $name $name $models $settings) | fromJson) -}}
{{- end -}}
{{- end -}}
{{- concat $result $groups | toJson -}}
{{- end }}

{{- define "quintet.workload" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $service := index . 2 -}}
{{- $settings := index . 4 -}}
{{- $facts := get (include "quintet.services" $root | fromYaml) $service -}}
{{- $_ := set $settings.image "repository" (default $facts.image $settings.image.repository) -}}
{{- dict "name" $name "fullname" (printf "%s-%s" (include "quintet.fullname" $root) $name) "service" $service "module" $facts.module "models" (index . 3) "settings" $settings | toJson -}}
{{- end }}

{{- /* Those that vLLM's server runs, as a JSON list of {name, fullname, service, settings}. */ -}}
{{- define "quintet.vllm" -}}
{{- $result := list -}}
{{- range $name, $given := .Values.vllm -}}
{{- if or (has $name (list "router" "chat" "multimodal" "vision" "tts" "embed")) }}{{ fail (printf "vllm.%s: the name is taken" $name) }}{{ end -}}
{{- $settings := mergeOverwrite (deepCopy $.Values.workload) (dict "image" (deepCopy $.Values.vllmImage) "nodes" 1 "servedName" $name "aliases" (list)) (deepCopy $given) -}}
{{- $result = append $result (dict "name" $name "fullname" (printf "%s-%s" (include "quintet.fullname" $) $name) "service" "vllm" "settings" $settings) -}}
{{- end -}}
{{- $result | toJson -}}
{{- end }}

{{- /* "true" when some Deployment may have no pods at all. */ -}}
{{- define "quintet.sleeps" -}}
{{- range include "quintet.workloads" . | fromJsonArray -}}
{{- if and (eq .settings.autoscaling.type "keda") (eq (int .settings.autoscaling.minReplicas) 0) }}true{{ break }}{{ end -}}
{{- end -}}
{{- end }}

{{- /* models.yml of the router: every model's name, and every Deployment as an upstream whose addresses DNS tells. */ -}}
{{- define "quintet.routerConfig" -}}
{{- $config := include "quintet.config" . | fromYaml -}}
{{- $upstreams := list -}}
{{- $wait := 0 -}}
{{- range include "quintet.workloads" . | fromJsonArray -}}
{{- $upstreams = append $upstreams (dict "url" (printf "dns+http://%s:8000" .fullname)) -}}
{{- if and (eq .settings.autoscaling.type "keda") (eq (int .settings.autoscaling.minReplicas) 0) }}{{ $wait = max $wait (int .settings.loadSeconds) }}{{ end -}}
{{- end -}}
{{- range include "quintet.vllm" . | fromJsonArray -}}
{{- $upstream := dict "url" (printf "dns+http://%s:8000" .fullname) "models" (list .settings.servedName) -}}
{{- $aliases := dict -}}
{{- $served := .settings.servedName -}}
{{- range .settings.aliases }}{{ $_ := set $aliases . $served }}{{ end -}}
{{- if $aliases }}{{ $_ := set $upstream "aliases" $aliases }}{{ end -}}
{{- $upstreams = append $upstreams $upstream -}}
{{- end -}}
{{- $router := mergeOverwrite (dict "drain_delay" .Values.router.drainDelay "grace" .Values.router.grace) $config.router -}}
{{- if and $wait (not (hasKey $router "load_wait")) }}{{ $_ := set $router "load_wait" $wait }}{{ end -}}
{{- if .Values.router.keys.existingSecret }}{{ $_ := set $router "keys" (printf "/etc/quintet-keys/%s" .Values.router.keys.key) }}{{ end -}}
{{- dict "models" $config.models "upstreams" (concat $upstreams (default (list) $config.upstreams)) "router" $router | toYaml -}}
{{- end }}
