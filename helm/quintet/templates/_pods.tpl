{{- /* What all pods have in common, of (root, settings). */ -}}
{{- define "quintet.podCommon" -}}
{{- $root := index . 0 -}}
{{- $settings := index . 1 -}}
serviceAccountName: {{ include "quintet.serviceAccountName" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- $default := dict "runAsNonRoot" true "runAsUser" 10001 "runAsGroup" 10001 "fsGroup" 10001 "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") }}
  {{- toYaml (mergeOverwrite $default (deepCopy $settings.podSecurityContext)) | nindent 2 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $settings.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "quintet.containerSecurity" -}}
{{- $default := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{- toYaml (mergeOverwrite $default (deepCopy .securityContext)) -}}
{{- end }}

{{- /* Replicas apart from each other where nodes allow it, of (settings, labels). */ -}}
{{- define "quintet.spread" -}}
{{- $settings := index . 0 -}}
topologySpreadConstraints:
{{- if $settings.topologySpreadConstraints }}
  {{- toYaml $settings.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- toYaml (index . 1) | nindent 8 }}
{{- end }}
{{- end }}

{{- define "quintet.tolerations" -}}
{{- $tolerations := .tolerations -}}
{{- if and .gpu.count .gpu.tolerate -}}
{{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- with $tolerations -}}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "quintet.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpu.count -}}
{{- $limits := merge (dict .gpu.resource .gpu.count) (default (dict) $resources.limits) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- define "quintet.probes" -}}
{{- $probes := index . 0 -}}
{{- $ready := index . 1 -}}
startupProbe: {{- toYaml (merge (dict "httpGet" (dict "path" "/health" "port" "http")) $probes.startup) | nindent 2 }}
readinessProbe: {{- toYaml (merge (dict "httpGet" (dict "path" $ready "port" "http")) $probes.readiness) | nindent 2 }}
livenessProbe: {{- toYaml (merge (dict "httpGet" (dict "path" "/health" "port" "http")) $probes.liveness) | nindent 2 }}
{{- end }}

{{- /* Where weights are: environment, and the volume of (root, workload). */ -}}
{{- define "quintet.hubEnv" -}}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /cache/huggingface}
- {name: QUINTET_CACHE, value: /cache/quintet}
- {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
{{- with .Values.hub.endpoint }}
- {name: HF_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if .Values.hub.offline }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- with .Values.hub.existingSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.hub.key }}}}
{{- end }}
{{- end }}

{{- define "quintet.cacheOf" -}}
{{- $root := index . 0 -}}
{{- $own := (index . 1).settings.cache -}}
{{- $cache := mergeOverwrite (deepCopy $root.Values.cache) (deepCopy $own) -}}
{{- $name := ternary (include "quintet.fullname" $root) (index . 1).fullname (and $cache.shared (empty $own)) -}}
{{- $_ := set $cache "claim" (printf "%s-models" $name) -}}
{{- if and (eq $cache.type "existingClaim") (not $cache.existingClaim) }}{{ fail "cache.existingClaim: the name of the claim is needed with type existingClaim" }}{{ end -}}
{{- if and (eq $cache.type "hostPath") (not $cache.hostPath) }}{{ fail "cache.hostPath: the path is needed with type hostPath" }}{{ end -}}
{{- toYaml $cache -}}
{{- end }}

{{- define "quintet.cacheVolume" -}}
{{- $cache := include "quintet.cacheOf" . | fromYaml -}}
name: cache
{{- if eq $cache.type "claim" }}
persistentVolumeClaim: {claimName: {{ $cache.claim }}}
{{- else if eq $cache.type "existingClaim" }}
persistentVolumeClaim: {claimName: {{ $cache.existingClaim }}}
{{- else if eq $cache.type "hostPath" }}
hostPath: {path: {{ $cache.hostPath | quote }}, type: DirectoryOrCreate}
{{- else }}
emptyDir: {sizeLimit: {{ $cache.size }}}
{{- end }}
{{- end }}

{{- /* The ports of (url, port when it names none, url, ...) as a list in JSON; nothing when there is no URL. */ -}}
{{- define "quintet.portsOf" -}}
{{- $ports := list -}}
{{- range $pair := chunk 2 . -}}
{{- if first $pair -}}
{{- $named := regexFind ":[0-9]+$" (urlParse (first $pair)).host | trimPrefix ":" -}}
{{- $ports = append $ports (dict "port" (int (default (last $pair) $named)) "protocol" "TCP") -}}
{{- end -}}
{{- end -}}
{{- if $ports }}{{ toJson $ports }}{{ end -}}
{{- end }}
