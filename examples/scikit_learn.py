"""In a scikit-learn pipeline: an encoder learnt from all digits without labels, a classifier from a few with them."""

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from labelfree import SelfSupervised


def main(epochs: int = 10, labels: int = 50) -> tuple[float, float]:
    digits = load_digits()
    pictures = (digits.images * 15).astype("uint8")
    train, test, y_train, y_test = train_test_split(pictures, digits.target, stratify=digits.target, random_state=0)

    encoder = SelfSupervised(
        "image", "simclr", "timm:resnet10t", epochs=epochs, random_state=0, settings={"augment": "V", "flip": 0}
    )
    scale = StandardScaler()
    features, features_test = (
        scale.fit_transform(encoder.fit_transform(train)),
        scale.transform(encoder.transform(test)),
    )

    few = train_test_split(range(len(train)), train_size=labels, stratify=y_train, random_state=0)[0]
    learnt = LogisticRegression(C=0.01, max_iter=1000).fit(features[few], y_train[few]).score(features_test, y_test)
    flat, flat_test = train.reshape(len(train), -1) / 255, test.reshape(len(test), -1) / 255
    raw = LogisticRegression(max_iter=1000).fit(flat[few], y_train[few]).score(flat_test, y_test)
    print(f"accuracy with {labels} labels: {learnt:.3f} with learnt features, {raw:.3f} with raw pixels")
    return learnt, raw


if __name__ == "__main__":
    main()
