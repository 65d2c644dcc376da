"""Make ``quintet_vision/emoji64/chinese.json``: Chinese words for what emoji-64 can draw, with their English.

    python services/vision/train/chinese.py

CLDR describes each emoji by a name and keywords in both languages, unaligned. A Chinese word means the English one that
stands beside the same emoji: the pair with the largest overlap (Jaccard index) over all emoji, above a threshold.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from emoji_data import EMOJI, LATER, annotations

OUT = Path(__file__).parents[1] / "quintet_vision" / "emoji64" / "chinese.json"
ENOUGH = 0.5

# What CLDR lacks or says in another way.
OWN = {
    "红色": "red", "橙色": "orange", "黄色": "yellow", "绿色": "green", "蓝色": "blue", "紫色": "purple",
    "粉色": "pink", "粉红": "pink", "棕色": "brown", "黑色": "black", "白色": "white", "灰色": "gray",
    "金色": "golden", "红": "red", "橙": "orange", "黄": "yellow", "绿": "green", "蓝": "blue", "紫": "purple",
    "可爱": "cute", "大": "big", "小": "small", "猫": "cat", "小猫": "cat", "猫咪": "cat", "狗": "dog",
    "小狗": "dog", "兔子": "rabbit", "熊": "bear", "鸟": "bird", "鱼": "fish", "马": "horse", "牛": "cow",
    "猪": "pig", "羊": "sheep", "鸡": "chicken", "鸭子": "duck", "老虎": "tiger", "狮子": "lion", "龙": "dragon",
    "熊猫": "panda", "大熊猫": "panda", "大象": "elephant", "蛇": "snake", "猴子": "monkey", "花": "flower",
    "花朵": "flower", "树": "tree", "树木": "tree", "山": "mountain", "大山": "mountain", "雪": "snow",
    "下雪": "snow", "雨": "rain", "下雨": "rain", "太阳": "sun", "月亮": "moon", "星星": "star", "云": "cloud",
    "海": "ocean wave", "大海": "ocean wave", "海滩": "beach", "房子": "house", "汽车": "car", "车": "car",
    "火车": "train", "飞机": "airplane", "船": "ship", "自行车": "bicycle", "苹果": "apple", "香蕉": "banana",
    "西瓜": "watermelon", "葡萄": "grapes", "草莓": "strawberry", "比萨": "pizza", "披萨": "pizza",
    "蛋糕": "cake", "面条": "noodles", "米饭": "rice", "咖啡": "coffee", "茶": "tea", "啤酒": "beer",
    "书": "book", "电脑": "computer", "手机": "mobile phone", "机器人": "robot", "爱心": "red heart",
    "红心": "red heart", "笑脸": "smiling face", "城堡": "castle", "长城": "castle", "火": "fire", "冰": "ice",
    "个苹果": "red apple",  # one of no named colour: the bare word is drawn in a mixture of red and green
    "夜晚": "night", "彩虹": "rainbow", "火箭": "rocket", "雪人": "snowman", "卡通": "cartoon",
}  # fmt: skip


def places(language: str) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Each emoji's short name, and for every name and keyword the emoji it stands beside."""
    names, keywords = annotations(language)
    found: dict[str, set[str]] = defaultdict(set)
    for char, words in keywords.items():
        for word in {*words, names.get(char, words[0])}:
            found[word.lower()].add(char)
    return names, found


def aligned() -> dict[str, str]:
    english_names, english = places("en")
    chinese_names, chinese = places("zh")
    ours = set(EMOJI + LATER)
    words = {}
    for word, emoji in chinese.items():
        if not emoji & ours or not all("㐀" <= letter <= "鿿" for letter in word):
            continue
        near = Counter(other for char in emoji for other, there in english.items() if char in there)
        scores = {other: len(emoji & english[other]) / len(emoji | english[other]) for other in near}
        best = max(scores, key=lambda other: (scores[other], -len(other)), default="")
        if best and scores[best] >= ENOUGH:
            words[word] = best
    for char in EMOJI + LATER:
        if char in chinese_names and char in english_names:
            words[chinese_names[char]] = english_names[char]
    return words


def main() -> None:
    words = dict(sorted({**aligned(), **OWN}.items()))
    lines = ",\n".join(f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value)}" for key, value in words.items())
    OUT.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"{len(words)} words, {OUT.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
